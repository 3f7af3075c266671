"""Tells near-ties from errors: runs a stage again, told what eager decided."""
