"""Compiles a model once for each strength of a reduction."""
