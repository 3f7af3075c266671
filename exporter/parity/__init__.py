"""Holds each stage to eager: how far outputs may be off, and what is said where they are."""
