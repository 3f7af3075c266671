"""Holds the torch passes, which make token operations operators of the tokexport domain."""
