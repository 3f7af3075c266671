"""Tells a lack of memory from other failures, however a runtime words it."""

from __future__ import annotations

import re
from typing import Final

#: What can be done.
FIX: Final = "Free memory, take a smaller batch, or use a machine with more."

#: How C++, ONNX Runtime, OpenVINO, TensorRT, torch, numpy and the loader of libraries say it.
_SAID: Final = re.compile(
    r"bad_?alloc|bad allocation|failed to allocate|unable to allocate|can(no|')t allocate"
    r"|not enough memory|out of memory|OutOfMemory|failed to map segment",
    re.IGNORECASE,
)


def lacks_memory(failure: BaseException | str) -> bool:
    """Returns whether an error, or what native code printed as it ended, is a lack of memory."""
    return isinstance(failure, MemoryError) or _SAID.search(str(failure)) is not None


def lacking(name: str, doing: str) -> str:
    """Says that a runtime found too little memory.

    Args:
        name: What the runtime is called.
        doing: What it was at: ``running the model``.
    """
    return f"{name} found too little memory {doing}."
