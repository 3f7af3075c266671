"""Defines the errors of surgery."""

from __future__ import annotations

from tokexport.graph_passes.errors import GraphError


class SurgeryError(GraphError):
    """A block cannot be taken apart, or a method cannot work on it; the reason is the message."""
