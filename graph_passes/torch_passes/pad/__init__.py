"""Pads token counts that the data decide to a cap."""
