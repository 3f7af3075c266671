"""Finds the first node of a stage whose error that of its inputs does not explain."""
