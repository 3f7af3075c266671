"""Measures bundles on the machine that is to run them, without torch."""
