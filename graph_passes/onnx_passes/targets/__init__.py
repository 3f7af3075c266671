"""Holds the passes for what one target needs, or gets wrong."""
