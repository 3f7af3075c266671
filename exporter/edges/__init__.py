"""Holds an artifact to inputs that neither the trace nor the samples show."""
