"""Lets the artifacts of a bundle for several batches read their weights from one file."""
