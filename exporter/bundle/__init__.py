"""Writes a bundle as a whole or not at all, and runs one."""
