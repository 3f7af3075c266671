"""The reduction methods: the only list of them."""

from __future__ import annotations

from typing import Final

from tokexport.graph_passes.reduction.method import Method
from tokexport.graph_passes.reduction.tome import ToMe

METHODS: Final[tuple[type[Method], ...]] = (ToMe,)
