"""Runs the model as the user wrote it: its inputs, its outputs and its state."""
