"""Gives passes access to an ONNX graph: neighbours, replacements, views, lines, roles."""
