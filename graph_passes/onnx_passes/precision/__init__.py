"""Holds the passes that bring a reduced precision into an ONNX graph."""
