"""Writes pages of HTML, which are read alone, from the results of commands."""
