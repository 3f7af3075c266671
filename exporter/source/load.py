"""Finds the kind of a source, and reads it with the module of that kind."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING

from tokexport.exporter.errors import SourceError, UsageError
from tokexport.exporter.source.factory import Built, call_factory, is_factory_name
from tokexport.exporter.source.files.checkpoint import load_checkpoint
from tokexport.exporter.source.files.exported_program import (
    load_exported_program,
    refuse_old_layout,
)
from tokexport.exporter.source.files.file_kind import FileKind, file_kind
from tokexport.exporter.source.hashing import hash_files, hash_model
from tokexport.exporter.source.input_shapes import known_input_shapes
from tokexport.exporter.source.options import Source, SourceOptions
from tokexport.exporter.source.preprocessing import timm_preprocessing
from tokexport.exporter.source.saved_module import load_saved_module
from tokexport.exporter.source.timm_model import PREFIX, build_timm_model
from tokexport.exporter.source.transformers_folder import (
    CONFIG,
    load_transformers_folder,
)
from tokexport.runtimes.bundle.bundle_files import hash_file

if TYPE_CHECKING:
    from torch import nn

_FORMS = (
    "A source is a file (model.pt2, model.pt, a checkpoint with --builder), a transformers folder, "
    "package.module:factory, or timm:NAME."
)
#: The note of a source without weights.
RANDOM_WEIGHTS = "the weights are random: no checkpoint was given"


def load_source(options: SourceOptions) -> Source:
    """Reads the model that the user named.

    A file or folder of that name comes first, then the form of the name: ``timm:NAME``, then
    ``package.module:factory``.

    Raises:
        SourceError: The source is not found, or it is not a model; the message says which.
        UntrustedPickleError: Reading it would run code that came with it.
        UsageError: Options that do not go together.
        PackageMissingError: The source needs a package that is not installed.
    """
    with chdir(Path.cwd()):  # restores the working folder if a module changes it
        return _loaded(options)


def _loaded(options: SourceOptions) -> Source:
    name = options.source
    path = Path(name)
    if name.startswith(PREFIX):
        _refuse(options.builder, "--builder", "a model of timm is built by timm", "--checkpoint")
        return _from_timm(options)
    try:
        is_folder, is_there = path.is_dir(), path.exists()
    except OSError as error:  # a name too long, a folder above it that may not be entered
        raise SourceError(
            f"The source cannot be looked for: {error.strerror}.", where=f"{name:.300}", fix=_FORMS
        ) from error
    if name and is_folder:
        return _from_folder(path, options)
    if name and is_there:
        return _from_file(path, options)
    if is_factory_name(name):
        _refuse(options.builder, "--builder", "the source is a factory itself", "--checkpoint")
        return _from_factory(options)
    if path.suffix or path.name != name:
        raise SourceError("The file does not exist.", where=f"{name:.300}", fix=_FORMS)
    raise SourceError(f"There is no source named {name!r:.300}.", fix=_FORMS)


def _from_file(path: Path, options: SourceOptions) -> Source:
    _refuse(options.checkpoint, "--checkpoint", "the source is a file with its own weights")
    match kind := file_kind(path):
        case FileKind.TORCHSCRIPT:
            raise SourceError(
                "The file is a TorchScript archive (torch.jit.save), which torch.export does not "
                "take.",
                where=str(path),
                fix="Export the model it was scripted or traced from: torch.export.save("
                "torch.export.export(model.eval(), (x,)), 'model.pt2')",
            )
        case FileKind.OLD_EXPORTED_PROGRAM:
            raise refuse_old_layout(path)
        case FileKind.EXPORTED_PROGRAM:
            _refuse(options.builder, "--builder", f"the file is {kind.value}, which needs none")
            return _from_exported_program(path, options)
        case FileKind.SAFETENSORS if options.builder is None:
            raise SourceError(
                "The file holds weights without the model they belong to (.safetensors).",
                where=str(path),
                fix="Pass --builder package.module:factory with it, or the whole transformers "
                "folder it is from, or timm:NAME --checkpoint with this file.",
            )
        case _ if options.builder is not None:
            return _from_checkpoint(path, options.builder, options)
        case _:
            return _from_saved_module(path, options)


def _from_exported_program(path: Path, options: SourceOptions) -> Source:
    program = load_exported_program(path, options.trust_pickle)
    return Source(
        model=program.model,
        example_args=program.example_args,
        example_kwargs=program.example_kwargs,
        kind="exported-program",
        location=str(path),
        sha256=hash_file(path),
    )


def _from_saved_module(path: Path, options: SourceOptions) -> Source:
    model = load_saved_module(path, options.code_path, options.trust_pickle)
    return Source(
        model=model,
        example_args=None,
        example_kwargs={},
        kind="saved-module",
        location=str(path),
        sha256=hash_file(path),
        preprocessing=timm_preprocessing(model),
        input_shapes=known_input_shapes(model),
    )


def _from_checkpoint(path: Path, builder: str, options: SourceOptions) -> Source:
    built = call_factory(builder, options.code_path)
    notes = load_checkpoint(built.model, path)
    return _from_built(built, "checkpoint", f"{path} in {builder}", hash_file(path), notes)


def _from_factory(options: SourceOptions) -> Source:
    built = call_factory(options.source, options.code_path)
    notes = () if options.checkpoint is None else _load_given(built.model, options.checkpoint)
    digest = hash_model(built.model, options.source)
    return _from_built(built, "factory", options.source, digest, notes)


def _from_built(
    built: Built, kind: str, location: str, sha256: str, notes: tuple[str, ...]
) -> Source:
    given = built.example_args is not None
    return Source(
        model=built.model,
        example_args=built.example_args,
        example_kwargs=built.example_kwargs,
        kind=kind,
        location=location,
        sha256=sha256,
        preprocessing=timm_preprocessing(built.model),
        input_shapes=None if given else known_input_shapes(built.model),
        notes=notes,
    )


def _from_timm(options: SourceOptions) -> Source:
    model = build_timm_model(options.source.removeprefix(PREFIX))
    notes = (
        (RANDOM_WEIGHTS,) if options.checkpoint is None else _load_given(model, options.checkpoint)
    )
    return Source(
        model=model,
        example_args=None,
        example_kwargs={},
        kind="timm",
        location=options.source,
        sha256=hash_model(model, options.source),
        preprocessing=timm_preprocessing(model),
        input_shapes=known_input_shapes(model),
        notes=notes,
    )


def _from_folder(folder: Path, options: SourceOptions) -> Source:
    _refuse(options.checkpoint, "--checkpoint", "the folder has its own weights")
    _refuse(options.builder, "--builder", "a transformers folder needs none")
    if not (folder / CONFIG).is_file():
        raise SourceError(
            "The folder is no transformers folder: it has no config.json.",
            where=str(folder),
            fix=f"Pass what model.save_pretrained(folder) wrote. {_FORMS}",
        )
    loaded = load_transformers_folder(folder, options.trust_pickle)
    return Source(
        model=loaded.model,
        example_args=None,
        example_kwargs={},
        kind="transformers",
        location=str(folder),
        sha256=hash_files(loaded.files),
        preprocessing=loaded.preprocessing,
        input_shapes=loaded.input_shapes,
        notes=loaded.notes,
    )


def _load_given(model: nn.Module, path: Path) -> tuple[str, ...]:
    try:
        is_folder, is_there = path.is_dir(), path.exists()
    except OSError as error:
        raise SourceError(
            f"The checkpoint cannot be looked for: {error.strerror}.",
            where=f"{str(path):.300}",
            fix="Pass the path of a file in a folder that you may enter.",
        ) from error
    if is_folder or not is_there:
        raise SourceError(
            "The checkpoint is a folder." if is_folder else "The checkpoint does not exist.",
            where=str(path),
            fix="Pass the file of weights with --checkpoint.",
        )
    return load_checkpoint(model, path)


def _refuse(given: object, option: str, why: str, instead: str = "") -> None:
    if given is not None:
        raise UsageError(
            f"{option} does not go with this source: {why}.",
            fix=f"Leave it out, or pass weights with {instead}." if instead else "Leave it out.",
        )
