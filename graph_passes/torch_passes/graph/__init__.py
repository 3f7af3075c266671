"""Gives passes access to a traced graph: calls, edits, the loop that runs them, decisions."""
