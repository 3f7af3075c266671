"""Reads files of a bundle that a stranger may have written."""
