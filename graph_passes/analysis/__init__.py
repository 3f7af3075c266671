"""Says what a graph costs, what it is made of and what stayed generic."""
