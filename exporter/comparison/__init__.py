"""Compares any two of bundle, ONNX file, OpenVINO IR and source on the same inputs."""
