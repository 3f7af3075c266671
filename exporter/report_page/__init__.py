"""Writes pages that a person reads alone, from the results of commands."""
