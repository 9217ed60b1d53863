"""Networks that others trained: their files, opened from disk and only if everything in them fits."""
