"""What a traced graph is to the passes: calls, edits, the loop that runs passes, decisions."""
