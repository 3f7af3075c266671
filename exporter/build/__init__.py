"""Emits a traced graph, lowers it and builds what a target's runtime loads."""
