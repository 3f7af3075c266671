"""Compares arrays within tolerances."""
