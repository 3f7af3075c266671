"""Follows what is known of masks and indices while tracing: how many rows they choose."""
