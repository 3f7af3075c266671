"""What an ONNX graph is to the passes: neighbours, replacements, views, lines, roles."""
