"""Says what the products of a graph are for, and how many tokens they see."""
