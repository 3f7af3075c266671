"""Runs what the runtimes do in native code in a process of its own, which may die."""
