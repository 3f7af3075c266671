"""What one target needs, or gets wrong."""
