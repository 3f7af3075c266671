"""Finds matches, merges, gathers and attentions in a traced graph."""
