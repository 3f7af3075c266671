"""Rewrites the traced graph: torch passes, ONNX functions, ONNX passes."""
