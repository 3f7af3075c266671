"""Says which cores a runtime may use and which are free, and keeps its threads on some."""
