"""What a user gives a model: arrays, their names, nests of them, and batches."""
