"""Joins operators into calls of native kernels."""
