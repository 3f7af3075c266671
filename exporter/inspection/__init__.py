"""Inspects a model: its blocks, its cost and what targets refuse."""
