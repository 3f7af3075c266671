"""Measures what rounding does to a model, with the decisions that it makes held fixed."""
