"""Holds a compiled model against everything that it could be run as instead."""
