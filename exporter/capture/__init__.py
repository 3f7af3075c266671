"""Traces a model to a static graph, or refuses it with the line that is not static."""
