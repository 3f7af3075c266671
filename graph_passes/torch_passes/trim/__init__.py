"""Leaves out rows and columns that nothing reads."""
