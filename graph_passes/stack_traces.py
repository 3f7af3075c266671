"""Finds the lines of the user's code that a value or an error came from.

Frames of torch, einops, the standard library and this package are left out wherever others are
known: a line of timm's or transformers' is named where the model is theirs. A frame inside a graph
that torch wrote as code stands for the lines its node came from::

    File "<eval_with_key>.33", line 6, in forward     softmax = torch.ops.aten.softmax.int(…)
"""

from __future__ import annotations

import linecache
import os
import re
import sysconfig
import traceback
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

import torch
from torch.fx import GraphModule, Node

_ROOT: Final = Path(__file__).absolute().parents[1]
#: Where frames are that no user wrote: this package's rooms, torch, and einops if it is there.
_OWN: Final = tuple(f"{_ROOT / room}{os.sep}" for room in ("exporter", "graph_passes", "runtimes"))
_TORCH: Final = f"{Path(torch.__file__).parent}{os.sep}"
_EINOPS: Final = f"{os.sep}einops{os.sep}"
_STANDARD: Final = f"{sysconfig.get_path('stdlib')}{os.sep}"
_INSTALLED: Final = ("site-packages", "dist-packages")
#: The file names of code that torch wrote for a graph, and of code without a file.
_WRITTEN: Final = "<eval_with_key>"
_NO_FILE: Final = ("<string>", "<frozen ")
_FRAME: Final = re.compile(r'^\s*File "(?P<file>[^"]*)", line (?P<line>\d+), in (?P<function>.+)$')


class Frame(NamedTuple):
    """One call of a stack."""

    file: str
    line: int
    function: str
    code: str

    def __str__(self) -> str:
        """Returns ``file:line, in function: code``."""
        place = f"{self.file}:{self.line}, in {self.function}"
        return f"{place}: {self.code}" if self.code else place


@cache
def is_users(file: str) -> bool:
    """Returns whether a file is neither of torch, einops, the standard library nor this package."""
    if file.startswith((*_OWN, _TORCH, _WRITTEN, *_NO_FILE)) or _EINOPS in file:
        return False
    return not file.startswith(_STANDARD) or any(part in file for part in _INSTALLED)


def user_frames(stack: Iterable[tuple[FrameType, int]]) -> list[Frame]:
    """Returns the user's frames of a live stack, or the last one named forward.

    Args:
        stack: Frames with the lines they are at, from the outermost on.
    """
    found: list[Frame] = []
    forward: list[Frame] = []
    for frame, line in stack:
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        if file.startswith(_WRITTEN):
            found += _frames_of_node(frame, line)
        elif is_users(file):
            found.append(Frame(file, line, function, linecache.getline(file, line).strip()))
        elif function == "forward" and file.startswith(_TORCH):
            forward = [Frame(file, line, function, linecache.getline(file, line).strip())]
    return found or forward


def _frames_of_node(frame: FrameType, line: int) -> list[Frame]:
    """Returns the frames of the node whose code a graph module is at."""
    code = linecache.getline(frame.f_code.co_filename, line, frame.f_globals)
    name = code.partition("=")[0].strip()
    module = frame.f_locals.get("self")
    if not name or not isinstance(module, GraphModule):
        return []
    node = next((node for node in module.graph.nodes if node.name == name), None)
    return [] if node is None else own_frames(node)


def source_line(node: Node) -> str:
    """Returns ``file:line, in function: code`` of the user's line a node came from, or ''."""
    return innermost_line(_trace_of(node))


def origin(node: Node) -> str:
    """Returns the line of a node and the forward that called it; its name without a line.

    For the place of a message, as ``At m.py:12, in merge: x[idx] (called by m.py:40, in forward)``.
    """
    frames = own_frames(node)
    if not frames:
        return f"At {source_line(node) or node.name}"
    return f"At {frames[-1]}{_caller(frames)}"


def raised_at(error: BaseException) -> str:
    """Returns the innermost line of the user's at which an error or its cause arose, or ''.

    Where that is in another function than a forward, the forward that called it is named too.
    """
    frames = error_frames(error)
    return f"{frames[-1]}{_caller(frames)}" if frames else ""


def error_frames(error: BaseException) -> list[Frame]:
    """Returns the user's frames of an error; of what caused it where it has none of its own."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        frames = user_frames(traceback.walk_tb(at.__traceback__))
        if frames and is_users(frames[-1].file):
            return frames
        at = at.__cause__ or at.__context__
    return []


def _caller(frames: list[Frame]) -> str:
    """Names the innermost forward around the last frame, where that is none itself."""
    if frames[-1].function == "forward":
        return ""
    forward = next((one for one in reversed(frames) if one.function == "forward"), None)
    return f" (called by {forward.file}:{forward.line}, in forward)" if forward else ""


def innermost_line(trace: str) -> str:
    """Returns the last frame of a stack trace as one line, of the user's if there are any."""
    frames = stack_frames(trace)
    users = [frame for frame in frames if is_users(frame.file)]
    return str((users or frames)[-1]) if frames else ""


def own_frames(node: Node) -> list[Frame]:
    """Returns the user's frames that a node came from, from the outermost on."""
    return [frame for frame in stack_frames(_trace_of(node)) if is_users(frame.file)]


def stack_frames(trace: str) -> list[Frame]:
    """Returns the frames of a stack trace as text, from the outermost on.

    Those of this package and of code that torch wrote are left out.
    """
    lines = trace.splitlines()
    found = []
    for line, code in zip(lines, [*lines[1:], ""], strict=False):
        match = _FRAME.match(line)
        if match and not match["file"].startswith((*_OWN, _WRITTEN)):
            below = "" if _FRAME.match(code) else code.strip()
            found.append(Frame(match["file"], int(match["line"]), match["function"], below))
    return found


def _trace_of(node: Node) -> str:
    trace = node.meta.get("stack_trace")
    return trace if isinstance(trace, str) else ""
