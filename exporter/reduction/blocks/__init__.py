"""Finds the blocks of a model, and what passes through them."""
