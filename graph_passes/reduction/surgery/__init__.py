"""Takes blocks of a model apart, and puts a reduction in."""
