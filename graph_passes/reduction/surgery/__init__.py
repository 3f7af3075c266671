"""Takes the blocks of a model apart, and rebuilds them with a reduction."""
