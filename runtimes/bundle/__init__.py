"""Reads the manifest of a bundle, and checks a caller's inputs against it."""
