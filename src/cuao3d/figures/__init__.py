"""Figures: what features tell apart, how they are distributed, where views disagree, predictions side by side."""
