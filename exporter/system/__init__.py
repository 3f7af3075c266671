"""Wraps the operating system: folders with locks, exchanges, signals, the machine."""
