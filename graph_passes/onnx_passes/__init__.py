"""Holds the ONNX passes of the targets."""
