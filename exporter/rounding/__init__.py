"""Measures the rounding error of a model, with its decisions held fixed."""
