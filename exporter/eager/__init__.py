"""The model as a user uses it: what it takes, answers and keeps."""
