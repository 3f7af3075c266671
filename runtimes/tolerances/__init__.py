"""Compares arrays with what they may differ by."""
