"""Holds the ONNX passes that every target needs."""
