"""Deterministic tensors for a state dict: every value depends only on the parameter's own name and shape."""

import zlib

import numpy as np


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if name.endswith("running_mean"):
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if len(shape) == 1 and name.endswith("weight"):
        return rng.uniform(0.8, 1.2, shape).astype(np.float32)
    if len(shape) <= 1:
        return (0.05 * rng.standard_normal(shape)).astype(np.float32)
    fan_in = int(np.prod(shape[:-1])) if name.endswith("kernel") else int(np.prod(shape[1:]))
    return (rng.standard_normal(shape) * (1.5 / fan_in) ** 0.5).astype(np.float32)
