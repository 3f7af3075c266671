"""Drives a model from its source to a proven bundle."""
