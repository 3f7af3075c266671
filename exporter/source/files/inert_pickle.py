"""Reads a pickle without importing or calling anything that it names.

A pickle is a program: it names functions and calls them. Here every name becomes an inert
placeholder that keeps its arguments, apart from the few that stand for tensors, which become
records of where a tensor's numbers are::

    torch._utils._rebuild_tensor_v2(storage, offset, size, stride, …)  →  TensorRecord
    collections.OrderedDict, set, bytes, numbers, str                  →  themselves
    argparse.Namespace, pathlib.PosixPath, my.models.ViT, os.system    →  Inert

No torch is needed, and no number of a tensor is read. The reader is Python's own, written in
Python, since each of its steps can be bounded: it takes no more memory than the pickle has bytes,
and neither hashes keys nor prints objects that are nested without end.
"""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import IO, Any, Final, NamedTuple, NoReturn

#: What is read of a file at a time, whatever length the pickle claims.
_PIECE: Final = 1 << 20
#: Elements that a tuple may have as a key.
_LONGEST_KEY: Final = 64
#: Beyond it no size, place or key is: torch's own numbers have 64 bits.
_MOST: Final = 2**63


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
        """Stands for the result of the real object."""
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


_Step = Callable[["InertUnpickler"], None]
_Unpickler: Any = pickle._Unpickler


class InertUnpickler(_Unpickler):  # type: ignore[misc]
    """Unpickles plain values and records of tensors; everything else becomes ``Inert``.

    Attributes:
        origins: The names that became placeholders, in the order they came.
        storages: Every storage by its key, whole, whatever part of it a tensor views.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(_Pieces(file), encoding="utf-8")
        self.origins: list[str] = []
        self.storages: dict[str, StorageRecord] = {}
        self._made: dict[str, type[Inert]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Returns the placeholder of ``module.name``, and imports nothing."""
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
        """Returns the record of a storage; old files also store the source of classes in it."""
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


class _Pieces:
    """Reads a file piece by piece, so that memory is taken only for bytes that exist."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.readline = file.readline

    def read(self, size: int) -> bytes:
        """Reads a number of bytes, or as many as exist."""
        if size <= _PIECE:
            return self._file.read(size)
        found = bytearray()
        while len(found) < size and (piece := self._file.read(min(_PIECE, size - len(found)))):
            found += piece
        return bytes(found)


def _key(value: Any) -> Any:
    """Returns a key if the cost of hashing and printing it is bounded by its bytes."""
    if type(value) is frozenset:  # its own elements were keys
        return value
    parts = value if type(value) is tuple else (value,)
    if len(parts) > _LONGEST_KEY or not all(_is_plain(part) for part in parts):
        raise pickle.UnpicklingError("a key that is built of others")
    return value


def _is_plain(value: Any) -> bool:
    if type(value) is int:
        return -_MOST <= value < 2 * _MOST  # others are easy to find of one hash
    plain = isinstance(value, str | bytes | float | complex | bool | None)
    known = (Inert, type, TensorRecord, _Builder, _Type, _StorageClass)
    return plain or isinstance(value, known)


def _set_item(unpickler: InertUnpickler) -> None:
    value = unpickler.stack.pop()
    key = unpickler.stack.pop()
    unpickler.stack[-1][_key(key)] = value


def _set_items(unpickler: InertUnpickler) -> None:
    items = unpickler.pop_mark()
    target = unpickler.stack[-1]
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[_key(key)] = value


def _dict(unpickler: InertUnpickler) -> None:
    items = unpickler.pop_mark()
    pairs = zip(items[::2], items[1::2], strict=True)
    unpickler.append({_key(key): value for key, value in pairs})


def _add_items(unpickler: InertUnpickler) -> None:
    items = unpickler.pop_mark()
    target = unpickler.stack[-1]
    for item in items:
        target.add(_key(item))


def _frozen_set(unpickler: InertUnpickler) -> None:
    items = unpickler.pop_mark()
    unpickler.append(frozenset(map(_key, items)))


def _bytearray8(unpickler: InertUnpickler) -> None:
    (length,) = struct.unpack("<Q", unpickler.read(8))
    unpickler.append(bytearray(unpickler.read(length)))


# The steps that hash keys, or make room before they read.
_STEPS: Final[dict[bytes, _Step]] = {
    pickle.SETITEM: _set_item,
    pickle.SETITEMS: _set_items,
    pickle.DICT: _dict,
    pickle.ADDITEMS: _add_items,
    pickle.FROZENSET: _frozen_set,
    pickle.BYTEARRAY8: _bytearray8,
}
InertUnpickler.dispatch = _Unpickler.dispatch | {code[0]: do for code, do in _STEPS.items()}


def _naturals(numbers: Any) -> bool:
    return all(type(number) is int and 0 <= number < _MOST for number in numbers)


def _record(storage: Any, dtype: str, offset: Any, shape: Any, stride: Any) -> TensorRecord:
    if not isinstance(storage, StorageRecord) or len(shape) != len(stride):
        raise pickle.UnpicklingError("a tensor without a storage")
    if not _naturals((offset, *shape, *stride)):
        raise pickle.UnpicklingError("a tensor whose sizes or strides are none")
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


def _scalar(kind: type) -> Callable[..., Any]:
    """Returns a call of a built-in class on numbers and texts alone."""

    def make(*given: Any) -> Any:
        if not all(isinstance(one, str | bytes | int | float) for one in given):
            raise pickle.UnpicklingError(f"{kind.__name__} of an object")
        return kind(*given)

    return make


def _set_of(kind: type) -> Callable[..., Any]:
    """Returns a call of a built-in class on keys."""

    def make(items: Iterable[Any] = ()) -> Any:
        return kind(map(_key, items))

    return make


def _mapping(kind: type) -> Callable[..., Any]:
    """Returns a call of a built-in class on a mapping or pairs."""

    def make(items: Any = ()) -> Any:
        pairs = dict.items(items) if isinstance(items, dict) else items
        return kind((_key(key), value) for key, value in pairs)

    return make


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
# Built-in classes, as calls: a subclass of one would be called through ``__new__`` of ``Inert``.
_KINDS: Final[dict[type, Callable[..., Any]]] = {
    **{kind: _scalar(kind) for kind in (complex, int, float, str, bool)},
    **{kind: _set_of(kind) for kind in (set, frozenset)},
    **{kind: kind for kind in (list, tuple)},
    dict: _mapping(dict),
}
# Protocol 2 names builtins so.
_VALUES: dict[str, Any] = {
    "collections.OrderedDict": _Builder(_mapping(OrderedDict)),
    **{
        f"{module}.{kind.__name__}": _Builder(make)
        for module in ("builtins", "__builtin__")
        for kind, make in _KINDS.items()
    },
}
