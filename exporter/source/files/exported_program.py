"""Loads a program that ``torch.export.save`` wrote, and runs nothing that came with it.

torch's loader falls back from its safe unpickler to the full one, and opens other entries that run
code, so every entry of the archive is checked first::

    models/<name>.json                  the graph                  program_check
    data/sample_inputs/<name>.pt        a pickle, falls back       must pass the safe unpickler
    data/weights/, data/constants/      raw numbers, but a config  entries marked as pickles must
                                        may mark them as pickles   pass the safe unpickler
    data/constants/custom_obj_*         objects of C++ classes     refused
    data/constants/opaque_obj_*         pickles, full unpickler    refused
    data/weights/<name>.pt              older torch, falls back    must pass the safe unpickler
    data/aotinductor/                   compiled libraries         refused

The check reads the archive with the reader that the loader uses, so both see the same entries.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import itertools
import json
import logging
import pickle
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokexport.exporter.errors import SourceError, UntrustedPickleError, listed
from tokexport.exporter.source.files.program_check import unsafe_parts
from tokexport.exporter.source.files.torch_file import damage_in
from tokexport.exporter.torch_warnings import torch_warnings_silenced

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram
    from torch.export.pt2_archive import PT2ArchiveReader

_EXPORT = "torch.export.save(torch.export.export(model.eval(), (x,)), 'model.pt2')"
_LIMIT = 3
_LOGGERS = ("torch._export.serde.serialize", "torch.export.pt2_archive._package")


class LoadedProgram(NamedTuple):
    """An exported program as a module, with the example inputs it keeps, if any."""

    model: nn.Module
    example_args: tuple[Any, ...] | None
    example_kwargs: dict[str, Any]


def load_exported_program(path: Path, trust_pickle: bool) -> LoadedProgram:
    """Loads an exported program.

    Args:
        path: The archive, of any suffix.
        trust_pickle: Whether code in the archive may run.

    Returns:
        The module; its inputs have the names they were exported with. It is as it was exported:
        calling ``train()`` or ``eval()`` on it raises NotImplementedError.

    Raises:
        UntrustedPickleError: An entry of the archive could run code.
        SourceError: The archive is damaged, of another version, or holds several programs or none.
    """
    if not trust_pickle:
        _check(path)
    try:
        with _quiet_log():
            program = _load_known_classes(path)
            _copy_literals(program)
            # Guards on the inputs are Python source in the archive; the module does without them.
            model = program.module(check_guards=False)
            args, kwargs = program.example_inputs or (None, {})
    except (SourceError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise _unreadable(path, error) from error
    return LoadedProgram(model, None if args is None else tuple(args), dict(kwargs))


def _copy_literals(program: ExportedProgram) -> None:
    """Makes ``torch.tensor([…])`` in the program traceable again: torch refuses its ``detach_``.

    Nothing else holds the fresh copy that it is called on, so a plain detach is equal.
    """
    import torch

    for node in program.graph.nodes:
        if node.target is torch.ops.aten.detach_.default:
            node.target = torch.ops.aten.detach.default


def refuse_old_layout(path: Path) -> SourceError:
    """Returns the error for the layout of torch 2.7 and before, whose pickles torch trusts."""
    return SourceError(
        "The exported program is in the layout of torch 2.7 and before.",
        where=str(path),
        fix=f"Export it again with the torch that is installed: {_EXPORT}",
    )


def _check(path: Path) -> None:
    """Refuses an archive with entries that could run code."""
    from torch.export.pt2_archive import PT2ArchiveReader

    try:
        with PT2ArchiveReader(str(path)) as archive:
            names = Counter(entry.casefold() for entry in archive.get_file_names())
            faults = [f"entry {name} is there {n} times" for name, n in names.items() if n > 1]
            faults += [
                f"entry {entry}: {fault}"
                for entry in archive.get_file_names()
                for fault in itertools.islice(_faults(archive, entry), 1)
            ]
    except (RuntimeError, AssertionError, ValueError, LookupError, TypeError) as error:
        raise _unreadable(path, error) from error
    except AttributeError as error:  # JSON of another structure
        raise _unreadable(path, error) from error
    if faults:
        raise UntrustedPickleError(
            "Loading the exported program could run code that is in it.",
            where=f"{path}, {listed(faults, _LIMIT)}",
            fix=f"Export the model again ({_EXPORT}), or pass --trust-pickle if you trust where "
            "the file comes from.",
        )


def _faults(archive: PT2ArchiveReader, entry: str) -> Iterator[str]:
    """Yields the code that one entry could run, a clause each."""
    from torch.export.pt2_archive.constants import (
        AOTINDUCTOR_DIR,
        CONSTANTS_DIR,
        MODELS_DIR,
        SAMPLE_INPUTS_DIR,
        WEIGHTS_DIR,
    )

    # torch's reader finds entries whatever the case of their names; the checks below go by it.
    folders = (MODELS_DIR, AOTINDUCTOR_DIR, SAMPLE_INPUTS_DIR, WEIGHTS_DIR, CONSTANTS_DIR)
    folded = entry.casefold()
    for part in folders:
        if folded.startswith(part.casefold()) and not entry.startswith(part):
            yield "a name in other letters than torch writes"
    if any(folded.endswith(end) and not entry.endswith(end) for end in (".pt", ".json")):
        yield "a name in other letters than torch writes"
    if entry.startswith(MODELS_DIR):
        yield from unsafe_parts(_read_json(archive, entry))
    elif entry.startswith(AOTINDUCTOR_DIR):
        yield "a compiled library"
    elif entry.startswith(SAMPLE_INPUTS_DIR) or (
        entry.startswith((WEIGHTS_DIR, CONSTANTS_DIR)) and entry.endswith(".pt")
    ):
        yield from _pickle_fault(archive.read_bytes(entry))
    elif entry.startswith((WEIGHTS_DIR, CONSTANTS_DIR)) and entry.endswith(".json"):
        folder = WEIGHTS_DIR if entry.startswith(WEIGHTS_DIR) else CONSTANTS_DIR
        yield from _payload_faults(archive, folder, _read_json(archive, entry))


def _read_json(archive: PT2ArchiveReader, entry: str) -> Any:
    """Reads the JSON of an entry.

    Raises:
        ValueError: It is no JSON.
    """
    return json.loads(archive.read_bytes(entry))


def _payload_faults(archive: PT2ArchiveReader, folder: str, config: Any) -> Iterator[str]:
    """Yields the pickles among the payloads that a config lists."""
    from torch.export.pt2_archive.constants import (
        CUSTOM_OBJ_FILENAME_PREFIX,
        OPAQUE_OBJ_FILENAME_PREFIX,
    )

    for name, payload in config["config"].items():
        file = payload["path_name"]
        if file.startswith((CUSTOM_OBJ_FILENAME_PREFIX, OPAQUE_OBJ_FILENAME_PREFIX)):
            yield f"{name!r} is a pickled object ({file})"
        elif payload["use_pickle"]:
            for fault in _pickle_fault(archive.read_bytes(f"{folder}{file}")):
                yield f"{name!r} in {file}: {fault}"


def _pickle_fault(data: bytes) -> Iterator[str]:
    """Yields why torch's safe unpickler refuses a pickle, if it does."""
    import torch

    if not data:
        return
    if why := damage_in(
        data
    ):  # the safe unpickler of torch takes as much memory as the pickle asks for
        yield f"a pickle that is damaged: {why}"
        return
    try:
        with torch_warnings_silenced():
            torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, LookupError, EOFError) as error:
        yield _why_refused(error)
    except (TypeError, AttributeError, AssertionError, OSError, NotImplementedError) as error:
        yield _why_refused(error)


def _why_refused(error: Exception) -> str:
    """Returns the name that the safe unpickler does not know, if torch's message has it."""
    match = re.search(r"GLOBAL (\S+)|global (\S+)", str(error))
    if match:
        return f"a pickle that names {(match[1] or match[2]).rstrip('.,')}"
    return "a pickle that is more than tensors and plain values"


def _load_known_classes(path: Path) -> ExportedProgram:
    """Loads a program whose inputs or outputs may be of classes that torch has to know first."""
    try:
        return _load(path)
    except NotImplementedError as error:
        match = re.search(r"([\w.]+) in pytree is not registered", str(error))
        if match is None:
            raise
        name = match[1]
    if name.startswith("transformers.") and importlib.util.find_spec("transformers") is not None:
        importlib.import_module("transformers.modeling_outputs")
        return _load(path)
    raise SourceError(
        f"An input or output of the exported program is of the class {name}, which torch does not "
        "know here.",
        where=str(path),
        fix="Let the model return a tensor, tuple or dict, and export it again; or pass "
        "package.module:factory, whose module registers the class.",
    )


def _load(path: Path) -> ExportedProgram:
    from torch.export.pt2_archive._package import load_pt2

    with path.open("rb") as file:
        programs = load_pt2(file).exported_programs
    if len(programs) == 1:
        return next(iter(programs.values()))
    if "model" in programs:
        return programs["model"]
    raise SourceError(
        f"The archive holds {len(programs)} exported programs, and none is named 'model'.",
        where=f"{path}: {listed(list(programs))}" if programs else str(path),
        fix=f"Export one: {_EXPORT}",
    )


@contextmanager
def _quiet_log() -> Iterator[None]:
    """Silences torch's loader: every failure is raised as well."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def _unreadable(path: Path, error: Exception) -> SourceError:
    import torch

    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return SourceError(
        f"The exported program cannot be read by torch {torch.__version__}.",
        where=f"{path} ({lines[-1] if lines else type(error).__name__})",
        fix=f"The file is damaged or of another version of torch. Export it again: {_EXPORT}",
    )
