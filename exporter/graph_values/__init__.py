"""Shows and gives single values of graphs, and says whether rounding explains their errors."""
