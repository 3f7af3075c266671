"""Holds the stages of a compile, each a function that returns a frozen result."""
