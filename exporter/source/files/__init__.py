"""Reads files of models that may be damaged or hostile, without running what they hold."""
