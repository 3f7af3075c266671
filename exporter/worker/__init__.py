"""Runs the native code of the runtimes in a process of its own, which may die."""
