"""ONNX passes of the targets."""
