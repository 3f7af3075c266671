"""Runs a bundle's ONNX file with ONNX Runtime."""
