"""Holds the reduction methods, one a file, and the list of them."""
