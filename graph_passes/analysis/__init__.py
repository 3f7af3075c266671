"""Analyses a graph: its cost, its blocks and its unrecognised operators."""
