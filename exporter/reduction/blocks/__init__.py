"""Finds the blocks of a model and the tokens that pass through them."""
