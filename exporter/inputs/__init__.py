"""Reads the inputs that a user gives: arrays, their names, nested tensors and batches."""
