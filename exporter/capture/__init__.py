"""Traces a model to a static graph, or says what in it is not static."""
