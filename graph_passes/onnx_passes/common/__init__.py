"""Passes over ONNX that every target takes."""
