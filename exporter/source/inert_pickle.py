"""Reads a pickle without importing or calling anything that it names.

A pickle is a program: it names functions and calls them. Here every name becomes an inert
placeholder that keeps its arguments, apart from the few that stand for tensors, which become
records of where a tensor's numbers are::

    torch._utils._rebuild_tensor_v2(storage, offset, size, stride, …)  →  TensorRecord
    collections.OrderedDict, set, bytes, numbers, str                  →  themselves
    argparse.Namespace, pathlib.PosixPath, my.models.ViT, os.system    →  Inert

No torch is needed, and no number of a tensor is read.
"""

from __future__ import annotations

import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any, NamedTuple, NoReturn

_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
#: Places of a memo that a pickle may leave out.
_SLACK = 1000


class StorageRecord(NamedTuple):
    """The place of a run of numbers in a file of torch.

    Attributes:
        key: The name of the storage in the file.
        dtype: The name of torch's type, ``float32``; empty for untyped bytes.
        length: The number of elements.
        start: The first element of the storage that this is a view of, in elements.
    """

    key: str
    dtype: str
    length: int
    start: int = 0


class TensorRecord(NamedTuple):
    """A strided view of a storage; offset and strides count elements."""

    storage: StorageRecord
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Inert:
    """Stands for an object whose class or function was not looked up.

    Each name in a pickle gets a subclass of its own; ``origin`` is that name.
    """

    origin = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        """Keeps the arguments that the real class or function would have got."""
        made = super().__new__(cls)
        made.arguments = args
        made.state = None
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.arguments: tuple[Any, ...]
        self.state: Any

    def __call__(self, *args: Any) -> Inert:
        """Stands for what the real object would have returned."""
        return type(self)(*args)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Drops an item: a mapping whose class is unknown is of no use here."""

    def append(self, value: Any) -> None:
        """Drops an element."""

    def extend(self, values: Any) -> None:
        """Drops elements."""

    def add(self, value: Any) -> None:
        """Drops an element."""


class _Builder:
    """A call that a pickle may make; nothing in a pickle can change it."""

    __slots__ = ("_make",)
    _make: Callable[..., Any]

    def __init__(self, make: Callable[..., Any]) -> None:
        object.__setattr__(self, "_make", make)

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise pickle.UnpicklingError("the pickle sets an attribute of a function")


# Storage classes by the names pickles use, with the name of torch's type.
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "UntypedStorage": "",
}
# Types without a storage class of their own are named as torch.<type>.
DTYPES = tuple(name for name in _STORAGES.values() if name) + (
    "uint16",
    "uint32",
    "uint64",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
)


class _Type(NamedTuple):
    """One of torch's types, by its name."""

    name: str


class _StorageClass(NamedTuple):
    """One of torch's storage classes, by the name of its type."""

    dtype: str


class InertUnpickler(pickle.Unpickler):
    """Unpickles plain values and records of tensors; everything else becomes ``Inert``.

    Attributes:
        origins: The names that became placeholders, in the order they came.
        storages: Every storage by its key, whole, whatever part of it a tensor views.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="utf-8")
        self._file = file
        self.origins: list[str] = []
        self.storages: dict[str, StorageRecord] = {}
        self._made: dict[str, type[Inert]] = {}

    def load(self) -> Any:
        """Reads one pickle, once its opcodes were looked through.

        Raises:
            pickle.UnpicklingError: It is damaged, or asks for more memory than it has bytes.
        """
        begin = self._file.tell()
        _check_opcodes(self._file)
        self._file.seek(begin)
        return super().load()

    def find_class(self, module: str, name: str) -> Any:
        """Returns what stands for ``module.name``, and imports nothing."""
        origin = f"{module}.{name}"
        if origin in _CALLS:
            return _CALLS[origin]
        if origin in _VALUES:
            return _VALUES[origin]
        package, _, last = origin.rpartition(".")
        if package in ("torch", "torch.storage", "torch.cuda") and last in _STORAGES:
            return _StorageClass(_STORAGES[last])
        if package == "torch" and last in DTYPES:
            return _Type(last)
        if origin not in self._made:
            self._made[origin] = type(name.rpartition(".")[2], (Inert,), {"origin": origin})
            self.origins.append(origin)
        return self._made[origin]

    def persistent_load(self, pid: Any) -> Any:
        """Returns the record of a storage; old files also keep the source of classes this way."""
        if not isinstance(pid, tuple) or not pid:
            raise pickle.UnpicklingError("unknown persistent id")
        if pid[0] == "module" and len(pid) == 4:
            return pid[1]
        if pid[0] != "storage" or len(pid) < 5 or not isinstance(pid[1], _StorageClass):
            raise pickle.UnpicklingError("unknown persistent id")
        key, count = pid[2], pid[4]
        view = pid[5] if len(pid) > 5 else None
        start, length = (0, count) if view is None else view[1:3]
        if not isinstance(key, str) or not _naturals((count, start, length)):
            raise pickle.UnpicklingError("damaged storage id")
        self.storages[key] = StorageRecord(key, pid[1].dtype, count)
        return StorageRecord(key, pid[1].dtype, length, start)


def _check_opcodes(file: IO[bytes]) -> None:
    """Refuses an opcode that makes the reader take memory which the pickle only claims to fill.

    The place of a memo is the length of a list, and a bytearray is made before it is read.
    """
    for position, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name in _PUTS and int(argument or 0) > 2 * position + _SLACK:
            raise pickle.UnpicklingError(f"a memo of {argument} places")


def _naturals(numbers: Any) -> bool:
    return all(type(number) is int and number >= 0 for number in numbers)


def _record(storage: Any, dtype: str, offset: Any, shape: Any, stride: Any) -> TensorRecord:
    if not isinstance(storage, StorageRecord) or len(shape) != len(stride):
        raise pickle.UnpicklingError("a tensor without a storage")
    if not _naturals((offset, *shape, *stride)):
        raise pickle.UnpicklingError("a tensor with a negative size or stride")
    return TensorRecord(storage, dtype, offset, tuple(shape), tuple(stride))


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorRecord:
    return _record(storage, getattr(storage, "dtype", ""), offset, shape, stride)


def _rebuild_typed_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: _Type
) -> TensorRecord:
    return _record(storage, dtype.name, offset, shape, stride)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def _rebuild_subclass(call: Any, _type: Any, args: Any, _state: Any) -> Any:
    if not isinstance(call, _Builder):
        raise pickle.UnpicklingError("a tensor made by an unknown function")
    return call(*args)


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin-1")


def _bytearray(*given: Any) -> bytearray:
    if given and isinstance(given[0], int):
        raise pickle.UnpicklingError(f"a bytearray of {given[0]} zeros")
    return bytearray(*given)


_CALLS: dict[str, _Builder] = {
    "torch._utils._rebuild_tensor": _Builder(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": _Builder(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v3": _Builder(_rebuild_typed_tensor),
    "torch._utils._rebuild_parameter": _Builder(_rebuild_parameter),
    "torch._utils._rebuild_parameter_with_state": _Builder(_rebuild_parameter),
    "torch._tensor._rebuild_from_type_v2": _Builder(_rebuild_subclass),
    "torch.Size": _Builder(tuple),
    "_codecs.encode": _Builder(_encode),
    "builtins.bytearray": _Builder(_bytearray),
    "__builtin__.bytearray": _Builder(_bytearray),
}
# Built-in classes: nothing in a pickle can set their attributes. Protocol 2 names builtins so.
_VALUES: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    **{
        f"{module}.{kind.__name__}": kind
        for module in ("builtins", "__builtin__")
        for kind in (dict, list, tuple, set, frozenset, complex, int, float, str, bool)
    },
}
