"""Sends and reads the messages of the worker: a JSON object, then the bytes of arrays.

::

    8 bytes   length of the JSON
    JSON      {"arrays": [[name, dtype, shape], …], …}
    bytes     of each array, in that order

Nothing is pickled, and nothing goes through a file. An error travels as the name of its class and
its fields, and is made anew from them.
"""

from __future__ import annotations

import json
import os
import struct
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from tokexport.exporter import errors as exporter_errors
from tokexport.runtimes import errors as runtime_errors
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.memory import lacks_memory

_LENGTH: Final = struct.Struct("<Q")
_PIECE: Final = 1 << 20  # bytes that are asked for at once
_CLASSES: Final = {
    name: kind
    for module in (exporter_errors, runtime_errors)
    for name, kind in vars(module).items()
    if isinstance(kind, type)
    and issubclass(kind, exporter_errors.ExporterError | runtime_errors.RuntimesError)
}
_FIELDS: Final = ("what", "where", "fix", "node", "operator")


@dataclass(frozen=True, eq=False)
class Message:
    """A question or an answer.

    Attributes:
        fields: What JSON holds.
        arrays: Arrays by name.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Array] = field(default_factory=dict)


def write_message(pipe: int, message: Message) -> None:
    """Writes a message.

    Raises:
        OSError: The other end is closed.
    """
    arrays = {name: np.require(array, requirements="C") for name, array in message.arrays.items()}
    described = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    text = json.dumps({**message.fields, "arrays": described}).encode()
    _write(pipe, memoryview(_LENGTH.pack(len(text)) + text))
    for array in arrays.values():
        if array.size:
            _write(pipe, array.reshape(-1).view(np.uint8).data)


def read_message(pipe: int) -> Message:
    """Reads a message.

    Raises:
        EOFError: The other end is closed.
    """
    (length,) = _LENGTH.unpack(_read(pipe, bytearray(_LENGTH.size)))
    fields = json.loads(_read(pipe, bytearray(length)))
    arrays = {}
    for name, dtype, shape in fields.pop("arrays"):
        arrays[name] = np.empty(shape, dtype)
        if arrays[name].size:
            _read(pipe, arrays[name].reshape(-1).view(np.uint8))
    return Message(fields, arrays)


def described(error: BaseException) -> dict[str, Any]:
    """Returns an error as values of JSON."""
    kind = type(error).__name__
    if _CLASSES.get(kind) is type(error):
        return {"kind": kind, **{name: getattr(error, name, "") for name in _FIELDS}}
    if isinstance(error, OSError) and error.errno is not None:
        return {"kind": "OSError", "given": [error.errno, error.strerror, _text(error.filename)]}
    if lacks_memory(error):
        return {"kind": "MemoryError", "given": [str(error)]}
    return {"kind": "", "said": f"{kind}: {error}", "trace": traceback.format_exc()}


def error_from(fields: Mapping[str, Any]) -> Exception:
    """Returns the error that ``described`` was given; a foreign error becomes an InternalError."""
    match fields["kind"]:
        case "OSError":
            return OSError(*fields["given"])
        case "MemoryError":
            return MemoryError(*fields["given"])
        case "":
            bug = exporter_errors.InternalError(fields["said"])
            bug.add_note(f"In the worker: {fields['trace']}")
            return bug
    kind = _CLASSES[fields["kind"]]
    texts = {name: fields[name] for name in ("where", "fix")}
    if issubclass(kind, runtime_errors.BuildError | runtime_errors.RunError):
        texts |= {name: fields[name] for name in ("node", "operator")}
    return kind(fields["what"], **texts)


def _text(name: Any) -> str | None:
    return None if name is None else os.fsdecode(name)


def _write(pipe: int, data: memoryview) -> None:
    while data:
        data = data[os.write(pipe, data) :]


def _read(pipe: int, held: Any) -> Any:
    """Fills a bytearray or an array of bytes, and returns it."""
    place = memoryview(held)
    while place:
        piece = os.read(pipe, min(len(place), _PIECE))
        if not piece:
            raise EOFError
        place[: len(piece)] = piece
        place = place[len(piece) :]
    return held
