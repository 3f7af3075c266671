"""Describes each target and its runtime; a new target is one file here and a line in ``known``."""
