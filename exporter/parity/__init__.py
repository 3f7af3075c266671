"""Compares each stage with eager: how far outputs may be off, and what to do if they are."""
