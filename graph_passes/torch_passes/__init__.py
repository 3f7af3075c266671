"""Torch passes: token operations become operators of the tokexport domain."""
