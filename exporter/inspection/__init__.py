"""Says what a model is made of, what it costs and what a target refuses."""
