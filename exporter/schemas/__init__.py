"""The JSON Schemas of what is written and printed: ``files``, ``commands``, and their reader."""
