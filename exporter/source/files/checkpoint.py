"""Loads the weights of a training checkpoint into a model that was built elsewhere.

A checkpoint is what training scripts save: the state dict alone, or under a key beside the
optimizer, the epoch and the arguments, with the prefixes that wrappers put before every name::

    {"model": {"module.blocks.0.norm1.weight": …}, "optimizer": …, "args": Namespace(…)}
                      →  blocks.0.norm1.weight
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokexport.exporter.errors import PackageMissingError, SourceError, listed
from tokexport.exporter.source.files.file_kind import FileKind, file_kind
from tokexport.exporter.source.files.inert_pickle import Inert, TensorRecord
from tokexport.exporter.source.files.torch_file import TorchFile, damaged, read_torch_file

if TYPE_CHECKING:
    from torch import Tensor, nn

# Where training scripts keep the weights, the plain ones before averaged ones.
WEIGHT_KEYS = (
    "model",
    "state_dict",
    "model_state_dict",
    "model_state",
    "module",
    "net",
    "network",
    "weights",
    "params",
    "model_ema",
    "ema",
    "state_dict_ema",
)
# Before every name: DistributedDataParallel's, torch.compile's and Lightning's.
_PREFIXES = ("module.", "_orig_mod.", "model.")
_LIMIT = 8
#: Dicts within dicts that weights are looked for in.
_DEEPEST = 20


class StateDict(NamedTuple):
    """Weights of a file, and what was decided while they were looked for."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...]


class _Found(NamedTuple):
    key: str
    records: dict[str, TensorRecord]


def load_checkpoint(model: nn.Module, path: Path) -> tuple[str, ...]:
    """Copies the weights of a file into a model, all of them and no others.

    Args:
        model: The model; its types stay, values are converted to them.
        path: A checkpoint of torch.save, or a .safetensors file.

    Returns:
        Notes on what was decided.

    Raises:
        SourceError: The file holds no state dict, or its weights are not the model's.
    """
    state = read_state_dict(path)
    tensors, notes = _strip_prefixes(state.tensors, set(model.state_dict()))
    _fill(model, tensors, path)
    return (*state.notes, *notes, *_converted(model, tensors))


def read_state_dict(path: Path) -> StateDict:
    """Reads the state dict of a file; nothing in the file is run.

    Raises:
        SourceError: The file holds no state dict.
    """
    match kind := file_kind(path):
        case FileKind.SAFETENSORS:
            return StateDict(_read_safetensors(path), ())
        case FileKind.TORCH_SAVE:
            file = read_torch_file(path)
            found = find_state_dict(file.root)
            if found is None:
                raise _no_state_dict(file)
            tensors = {name: file.tensor(record) for name, record in found.records.items()}
            return StateDict(tensors, _choice_notes(file.root, found))
        case _:
            raise SourceError(
                f"The checkpoint is {kind.value}, which holds no state dict to load.",
                where=str(path),
                fix="Pass what torch.save(model.state_dict(), path) wrote.",
            )


def find_state_dict(root: Any) -> _Found | None:
    """Finds the weights in what a file holds.

    Args:
        root: The object in the file, tensors as records.

    Returns:
        The weights with the key they were under ("" for the root itself), or None.
    """
    return _Search().find(root)


class _Search:
    """Searches dicts that may contain themselves, or one another many times."""

    def __init__(self) -> None:
        self._searched: set[int] = set()
        self._known: dict[int, dict[str, TensorRecord]] = {}

    def find(self, root: Any, depth: int = 0) -> _Found | None:
        """Finds weights in a dict, or below the keys that they are kept under."""
        if not isinstance(root, dict) or id(root) in self._searched or depth > _DEEPEST:
            return None
        self._searched.add(id(root))
        own = self._records(root)
        if own:
            return _Found("", own)
        for key in WEIGHT_KEYS:
            # dict.get: a pickle can give an OrderedDict attributes that hide its methods.
            inner = self.find(dict.get(root, key), depth + 1)
            if inner is not None:
                return _Found(f"{key}.{inner.key}" if inner.key else key, inner.records)
        others = [
            (key, self._records(value))
            for key, value in dict.items(root)
            if isinstance(value, dict)
        ]
        filled = [(str(key), records) for key, records in others if records]
        return _Found(*filled[0]) if len(filled) == 1 else None

    def _records(self, mapping: dict[Any, Any]) -> dict[str, TensorRecord]:
        if id(mapping) not in self._known:
            self._known[id(mapping)] = _records(mapping)
        return self._known[id(mapping)]


def contents(root: Any) -> str:
    """Describes what a file holds in a few words, for a message."""
    if isinstance(root, Inert):
        return f"an object of the class {root.origin}"
    if isinstance(root, TensorRecord):
        return f"one tensor of shape {root.shape}"
    if not isinstance(root, dict):
        return f"a {type(root).__name__}"
    if not dict.__len__(root):
        return "an empty dict"
    keys = [f"{key} ({_kind(value)})" for key, value in dict.items(root)]
    return f"a dict of {listed(keys, _LIMIT)}"


def _kind(value: Any) -> str:
    if isinstance(value, Inert):
        return value.origin
    if isinstance(value, TensorRecord):
        return f"tensor {value.shape}"
    if isinstance(value, dict):
        return f"dict of {dict.__len__(value)}"
    return type(value).__name__


def _records(mapping: dict[Any, Any]) -> dict[str, TensorRecord]:
    """Returns the mapping as a state dict: names to tensors and nothing else; or empty."""
    records: dict[str, TensorRecord] = {}
    for key, value in dict.items(mapping):
        if isinstance(key, str) and isinstance(value, TensorRecord):
            records[key] = value
        elif not (isinstance(key, str) and key.endswith("_extra_state")):
            return {}
    return records


def _choice_notes(root: Any, found: _Found) -> tuple[str, ...]:
    if not found.key:
        return ()
    seen: set[int] = set()
    averaged = []
    for key, value in dict.items(root):
        if str(key) == found.key.partition(".")[0] or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict) and find_state_dict(value) is not None:
            averaged.append(str(key))
    note = f"the weights are those under {found.key!r} in the checkpoint"
    return (f"{note}, and not those under {listed(averaged)}" if averaged else note,)


def _no_state_dict(file: TorchFile) -> SourceError:
    if isinstance(file.root, Inert) or (
        isinstance(file.root, dict)
        and any(isinstance(dict.get(file.root, key), Inert) for key in WEIGHT_KEYS)
    ):
        fix = (
            "A whole pickled module is no state dict: save it again with "
            "torch.save(model.state_dict(), path)."
        )
    else:
        fix = f"Save the weights under one of {listed(WEIGHT_KEYS[:4])}, or alone."
    return SourceError(
        "The checkpoint holds no state dict.",
        where=f"{file.path} holds {contents(file.root)}",
        fix=fix,
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise PackageMissingError(
            "Reading a .safetensors file needs 'safetensors', which is not installed.",
            where=str(path),
            fix="pip install safetensors",
        ) from error
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise damaged(path, str(error)) from error
    return tensors


def _strip_prefixes(
    tensors: dict[str, Tensor], wanted: set[str]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Removes the prefixes of wrappers that the model's own names do not have."""
    stripped: list[str] = []
    while tensors:
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None)
        if prefix is None or any(name.startswith(prefix) for name in wanted):
            break
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
        stripped.append(prefix)
    inner = "._orig_mod."  # torch.compile of one submodule
    if any(inner in name for name in tensors) and not any(inner in name for name in wanted):
        tensors = {name.replace(inner, "."): value for name, value in tensors.items()}
        stripped.append(inner)
    if not stripped:
        return tensors, ()
    return tensors, (f"the prefix {''.join(stripped)!r} of the checkpoint's names was taken off",)


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        misfits = _misfits(model.state_dict(), tensors) or [str(error).splitlines()[-1].strip()]
        raise SourceError(
            f"The weights are not those of this model ({type(model).__name__}).",
            where="\n".join([str(path), *misfits]),
            fix="Build the model with the same sizes and options as in training, or pass the "
            "checkpoint that belongs to it.",
        ) from error


def _misfits(wanted: Mapping[str, Any], given: Mapping[str, Tensor]) -> list[str]:
    """Returns a line each for missing, unexpected and misshapen names, if any."""
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    shapes = [
        f"{name}: {tuple(given[name].shape)} in the file, {tuple(value.shape)} in the model"
        for name, value in wanted.items()
        if name in given and tuple(given[name].shape) != tuple(value.shape)
    ]
    titled = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    return [f"{title} ({len(names)}): {listed(names, _LIMIT)}" for title, names in titled if names]


def _converted(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Returns a note if the numbers were converted to the model's type."""
    own = model.state_dict()
    pairs = {
        (str(value.dtype).removeprefix("torch."), str(own[name].dtype).removeprefix("torch."))
        for name, value in tensors.items()
        if value.dtype != own[name].dtype
    }
    return tuple(
        f"{given} weights of the checkpoint were converted to {kept}"
        for given, kept in sorted(pairs)
    )
