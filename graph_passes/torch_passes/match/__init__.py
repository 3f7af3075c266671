"""Reads values of a traced graph: constants, bounds, axes, indices, logits."""
