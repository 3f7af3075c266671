"""Spells operators out in those that every target computes alike."""
