"""What is particular to the runtime of each target: adding one is a file here, and its name."""
