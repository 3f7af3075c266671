"""Brings a reduced precision into an ONNX graph."""
