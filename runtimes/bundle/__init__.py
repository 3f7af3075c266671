"""Reads the manifest of a bundle, and holds a caller's inputs to it."""
