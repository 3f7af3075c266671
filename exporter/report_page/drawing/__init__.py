"""Draws the tokens of pictures."""
