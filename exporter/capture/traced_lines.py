"""Records the user's whole stack, from forward to the line, at every node of a traced graph.

torch keeps of a stack the functions called forward, and of what stands in a region of its own,
such as that of autocast, the code it wrote for that region. Inside this context it keeps what
``graph_passes/stack_traces.py`` takes for the user's::

    in forward: x = merge(x, 8)     →     in forward: x = merge(x, 8)
                                          in merge: a = a.gather(-2, index)
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

import torch
from torch.fx import proxy
from torch.fx.proxy import TracerBase

from tokexport.exporter.torch_warnings import torch_log_silenced, torch_warnings_silenced
from tokexport.graph_passes.stack_traces import user_frames

#: The method by which a tracer of torch chooses what it keeps of a stack.
_CHOICE: Final = "_filter_traceback_frames"
#: What it reads the stack with.
_READER: Final = "CapturedTraceback"
#: The files of torch whose calls stand between the caller of a trace and the model.
_TRACING: Final = ("torch/export/_trace.py", "torch/export/exported_program.py")


@contextmanager
def tracing() -> Iterator[None]:
    """Traces without gradients and torch's own remarks, and keeps the user's lines."""
    with torch.no_grad(), torch_warnings_silenced(), torch_log_silenced(), user_lines_kept():
        yield


@contextmanager
def user_lines_kept() -> Iterator[None]:
    """Keeps the user's frames of every node that is traced or decomposed inside the context."""
    chosen, read = TracerBase.__dict__.get(_CHOICE), vars(proxy).get(_READER)
    if chosen is None or read is None:  # another torch: then its own choice stands
        yield
        return
    setattr(TracerBase, _CHOICE, _all_of_them)
    setattr(proxy, _READER, _UserStack)
    try:
        yield
    finally:
        setattr(TracerBase, _CHOICE, chosen)
        setattr(proxy, _READER, read)


class _UserStack:
    """Reads the user's frames of the living stack alone: torch reads the lines of all of them."""

    @staticmethod
    def extract() -> _UserStack:
        """Returns what reads the stack."""
        return _UserStack()

    def summary(self) -> traceback.StackSummary:
        """Returns the user's frames, for torch to write down."""
        stack: list[tuple[FrameType, int]] = []
        for frame, line in traceback.walk_stack(sys._getframe(1)):
            if frame.f_code.co_filename.replace("\\", "/").endswith(_TRACING):
                break
            stack.append((frame, line))
        return traceback.StackSummary.from_list(
            [
                traceback.FrameSummary(one.file, one.line, one.function, line=one.code)
                for one in user_frames(reversed(stack))
            ]
        )


def _all_of_them(_tracer: TracerBase, frames: traceback.StackSummary) -> traceback.StackSummary:
    return frames
