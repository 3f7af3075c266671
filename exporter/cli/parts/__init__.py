"""Holds what the commands share: options, messages, and the advice on the next command."""
