"""Holds passes that write operators with those that every target computes alike."""
