"""Recognises a lack of memory in the messages of runtimes."""

from __future__ import annotations

import re
from typing import Final

#: What to do.
FIX: Final = "Free memory, take a smaller batch, or use a machine with more."

#: The words of C++, ONNX Runtime, OpenVINO, TensorRT, torch, numpy and the loader for it.
_SAID: Final = re.compile(
    r"bad_?alloc|bad allocation|failed to allocate|unable to allocate|can(no|')t allocate"
    r"|not enough memory|out of memory|OutOfMemory|failed to map segment",
    re.IGNORECASE,
)


def lacks_memory(failure: BaseException | str) -> bool:
    """Returns whether an error, or the output of native code, reports a lack of memory."""
    return isinstance(failure, MemoryError) or _SAID.search(str(failure)) is not None


def lacking(name: str, doing: str) -> str:
    """Returns the sentence that a runtime found too little memory.

    Args:
        name: The name of the runtime.
        doing: What it was doing: ``running the model``.
    """
    return f"{name} found too little memory {doing}."
