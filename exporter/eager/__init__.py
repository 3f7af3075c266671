"""The model as a person uses it: what it takes, answers and keeps."""
