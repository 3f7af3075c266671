"""Brings a traced graph to one form: each pass takes away one spelling."""
