"""Runs a bundle's OpenVINO model."""
