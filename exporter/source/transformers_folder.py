"""Loads a model from a folder that ``save_pretrained`` of transformers wrote.

::

    config.json                                    architectures, image_size, num_channels
    model.safetensors                              the weights, or in parts:
    model.safetensors.index.json, model-0000i-of-0000n.safetensors
    preprocessor_config.json                       optional

Nothing is fetched, and no code of the folder runs. A configuration that asks for the network, or
for an endless model, is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tokexport.exporter.errors import (
    PackageMissingError,
    SourceError,
    UntrustedPickleError,
    listed,
)
from tokexport.exporter.source.files.torch_file import damaged
from tokexport.exporter.source.input_shapes import known_input_shapes
from tokexport.exporter.source.preprocessing import (
    makes_one_size,
    transformers_preprocessing,
    unreadable_preprocessing,
)
from tokexport.exporter.source.processor_check import held_to_processor
from tokexport.runtimes.files.regular_files import read_at_most
from tokexport.runtimes.pictures.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch import nn


#: Parts of the names of options that count layers, and the largest count.
_COUNTED: Final = ("layer", "depth", "block", "stage")
_MOST: Final = 10_000
#: Levels of a configuration; an honest one has four.
_DEEPEST: Final = 30
#: Numbers that a model may hold beside its weights: tables of positions, and the like.
_MOST_IN_BUFFERS: Final = 1 << 26
#: The size that a model may always have, so that damaged weights are reported as damaged.
_SMALL: Final = 1 << 17


def check_config(config: Any, path: Path, depth: int = 0) -> None:
    """Refuses a configuration that makes transformers fetch a kernel or a backbone.

    Those are attention kernels, and backbones whose weights or configuration lie elsewhere. Nor may
    it count so many layers that they are never all made.

    Args:
        config: What the file holds, or a part of it.
        path: The file.
        depth: How deep the part lies.

    Raises:
        SourceError: It makes transformers fetch something, or counts too many layers.
    """
    if depth > _DEEPEST:
        raise SourceError(
            f"{path.name} nests deeper than a configuration does.",
            where=str(path),
            fix="Copy or download the folder again.",
        )
    if isinstance(config, list):
        for part in config:
            check_config(part, path, depth + 1)
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        if key.endswith("_implementation") and "/" in str(value):
            raise SourceError(
                f"The folder asks for a kernel from the network: {value!r:.200}.",
                where=f"{path}, {key!r}",
                fix=f"Take {key!r} out of config.json: the model runs without it.",
            )
        _check_count(key, value, path)
        check_config(value, path, depth + 1)
    _check_backbone(config, path)


def _check_count(key: str, value: Any, path: Path) -> None:
    numbers = [one for one in (value if isinstance(value, list) else [value]) if _is_number(one)]
    if any(part in key for part in _COUNTED) and any(number > _MOST for number in numbers):
        raise SourceError(
            f"The folder describes a model with more than {_MOST:,} layers: {key!r:.80}.",
            where=str(path),
            fix="Copy or download the folder again.",
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_backbone(config: dict[str, Any], path: Path) -> None:
    backbone = config.get("backbone")
    if not isinstance(backbone, str) or not backbone:
        return
    if config.get("use_pretrained_backbone"):
        raise SourceError(
            f"The folder asks for the weights of a backbone from the network: {backbone!r}.",
            where=f"{path}, 'use_pretrained_backbone'",
            fix="Set it to false in config.json: the folder's own weights hold the backbone's.",
        )
    if not config.get("use_timm_backbone"):
        raise SourceError(
            f"The folder asks for the configuration of a backbone from the network: {backbone!r}.",
            where=f"{path}, 'backbone'",
            fix="Write it into config.json as 'backbone_config', in the place of the name.",
        )


@contextmanager
def no_larger_than(weight_bytes: int, folder: Path) -> Iterator[None]:
    """Stops building a model that has far more numbers than its weights have bytes.

    torch calls back for each parameter and buffer that a module registers, and transformers builds
    modules without memory for their numbers.

    Args:
        weight_bytes: The bytes of its weights. A byte is a number at the most, and weights that
            are tied count twice.
        folder: The folder, for the message.

    Raises:
        SourceError: The model has far more numbers than the weights.
    """
    from torch.nn.modules.module import (
        register_module_buffer_registration_hook,
        register_module_parameter_registration_hook,
    )

    found = {"parameters": 0, "buffers": 0}

    def counts(kind: str, most: int) -> Any:
        def count(_module: Any, _name: str, tensor: Any) -> None:
            found[kind] += 0 if tensor is None else tensor.numel()
            if found[kind] > most:
                raise SourceError(
                    f"The folder describes a model of more numbers than its weights have: more "
                    f"than {most:,} in {kind}.",
                    where=f"{folder} ({weight_bytes:,} bytes of weights)",
                    fix="Copy or download the folder again: config.json is not of these weights.",
                )

        return count

    with ExitStack() as hooks:
        for kind, register, most in (
            ("parameters", register_module_parameter_registration_hook, _SMALL + 2 * weight_bytes),
            ("buffers", register_module_buffer_registration_hook, _MOST_IN_BUFFERS + weight_bytes),
        ):
            hooks.callback(register(counts(kind, most)).remove)
        yield


CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_LIMIT = 8
#: Bytes of a configuration, or of an index of weights; honest ones have less than a hundredth.
_LARGEST_JSON = 1 << 26


class Loaded(NamedTuple):
    """A model, the files it was read from, its input's shape and preprocessing, and notes."""

    model: nn.Module
    files: tuple[Path, ...]
    input_shapes: dict[str, tuple[int, ...]] | None
    preprocessing: Preprocessing | None
    notes: tuple[str, ...]


def load_transformers_folder(folder: Path, trust_pickle: bool) -> Loaded:
    """Loads the model of a folder, in evaluation mode.

    Args:
        folder: The folder.
        trust_pickle: Whether weights kept as a pickle may be used.

    Raises:
        SourceError: A file is missing or damaged, or the weights are not the model's.
        UntrustedPickleError: The weights are there as a pickle only.
        PackageMissingError: transformers is not installed.
    """
    config = _read_json(folder / CONFIG)
    check_config(config, folder / CONFIG)
    safe, files = _weight_files(folder, trust_pickle)
    transformers = _import_transformers()
    optional = [folder / PREPROCESSOR] if (folder / PREPROCESSOR).is_file() else []
    preprocessing = _preprocessing(transformers, optional[0]) if optional else None
    with no_larger_than(sum(path.stat().st_size for path in files), folder):
        model, notes = _load(transformers, folder, config, safe)
    used = (folder / CONFIG, *files, *optional)
    return Loaded(model, used, known_input_shapes(model), preprocessing, notes)


def _preprocessing(transformers: ModuleType, path: Path) -> Preprocessing | None:
    """Reads the folder's image processor, whose class has defaults for what the file omits.

    Returns:
        Its steps; None where it leaves pictures of many sizes.
    """
    auto = _attribute(transformers, "AutoImageProcessor")
    with _quiet(transformers), _offline():
        try:
            processor = auto.from_pretrained(
                str(path.parent), local_files_only=True, trust_remote_code=False
            )
        except MemoryError:
            raise
        except Exception as error:  # what its classes raise of values that they do not know
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise unreadable_preprocessing(path, lines[0] if lines else "") from error
        config = processor.to_dict()
        if not makes_one_size(config):
            return None
        return held_to_processor(processor, transformers_preprocessing(config, path))


def _weight_files(folder: Path, trust_pickle: bool) -> tuple[bool, tuple[Path, ...]]:
    """Returns the files of the weights, and whether they are safetensors."""
    if (folder / _WEIGHTS).is_file():
        return True, (folder / _WEIGHTS,)
    if (folder / _INDEX).is_file():
        return True, _parts(folder, folder / _INDEX)
    pickled = [folder / name for name in _PICKLED if (folder / name).is_file()]
    if not pickled:
        raise SourceError(
            "The folder has a config.json and no weights.",
            where=f"{folder}: neither {_WEIGHTS} nor {_INDEX} is there",
            fix="Save the model again with model.save_pretrained(folder).",
        )
    if not trust_pickle:
        raise UntrustedPickleError(
            "The folder's weights are a pickle, and loading it can run the code in it.",
            where=str(pickled[0]),
            fix="Save the model again with model.save_pretrained(folder), which writes "
            f"{_WEIGHTS}; or pass --trust-pickle if you trust where the folder comes from.",
        )
    indexed = pickled[0].suffix == ".json"
    return False, _parts(folder, pickled[0]) if indexed else (pickled[0],)


def _parts(folder: Path, index: Path) -> tuple[Path, ...]:
    """Returns the index and the files it names; all must be in the folder."""
    named = _read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise SourceError(
            "The index of the weights names no files.", where=str(index), fix="Save it again."
        )
    names = sorted({str(name) for name in named.values()})
    outside = [name for name in names if Path(name).name != name]
    missing = [name for name in names if not (folder / name).is_file()]
    if outside or missing:
        raise SourceError(
            f"Files of the weights are missing: {listed(outside or missing, _LIMIT)}.",
            where=f"{index} names them",
            fix="Copy or download them into the folder.",
        )
    return (index, *(folder / name for name in names))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_at_most(path, _LARGEST_JSON).decode("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise SourceError(
            f"{path.name} cannot be read.",
            where=f"{path} ({error})",
            fix="Copy or download the folder again.",
        ) from error
    if not isinstance(found, dict):
        raise SourceError(
            f"{path.name} holds no JSON object.",
            where=str(path),
            fix="Copy or download the folder again.",
        )
    return found


def _load(
    transformers: ModuleType, folder: Path, config: dict[str, Any], safe: bool
) -> tuple[nn.Module, tuple[str, ...]]:
    import torch
    from huggingface_hub.errors import OfflineModeIsEnabled
    from safetensors import SafetensorError

    model_class = _model_class(transformers, folder, config)
    with _quiet(transformers), _offline():
        try:
            model, info = model_class.from_pretrained(
                str(folder),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=safe,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that all of them are named below
            )
        except SafetensorError as error:
            raise damaged(folder, str(error)) from error
        except OfflineModeIsEnabled as error:
            asked = re.search(r"https?://\S+", str(error))
            raise SourceError(
                "The folder needs something that is not in it, and nothing is fetched: "
                f"{asked[0].rstrip(':') if asked else 'transformers does not say what'}",
                where=str(folder),
                fix="Load the model once where there is a network, and save_pretrained it whole.",
            ) from error
        except (MemoryError, SourceError):
            raise
        except Exception as error:  # what its classes raise of values that they do not know
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise SourceError(
                "The folder cannot be loaded by transformers: "
                f"{lines[0].strip() if lines else type(error).__name__}",
                where=str(folder),
                fix="Try AutoModelForImageClassification.from_pretrained on it to see the whole "
                "error.",
            ) from error
    missing = sorted(info["missing_keys"])
    misshapen = sorted(
        f"{name}: {tuple(given)} in the folder, {tuple(own)} in the model"
        for name, given, own in info["mismatched_keys"]
    )
    if missing or misshapen:
        what = f"missing: {listed(missing, _LIMIT)}" if missing else ""
        what += f"{'; ' if what and misshapen else ''}"
        what += f"of another shape: {listed(misshapen, _LIMIT)}" if misshapen else ""
        raise SourceError(
            f"The weights are not those of {type(model).__name__}.",
            where=f"{folder} ({what})",
            fix="Correct 'architectures' in config.json, or save the whole model again: what is "
            "missing would be random.",
        )
    notes = []
    if unused := sorted(info["unexpected_keys"]):
        notes.append(f"weights of the folder that the model does not use: {listed(unused)}")
    saved = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    if saved != "float32":
        notes.append(f"weights saved in {saved} were read into float32")
    return model.eval(), tuple(notes)


def _model_class(transformers: ModuleType, folder: Path, config: dict[str, Any]) -> Any:
    """Returns the class that config.json names, or the one that classifies images."""
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list):
        raise SourceError(
            f"'architectures' is no list but {architectures!r}.",
            where=str(folder / CONFIG),
            fix="Save the model again with model.save_pretrained(folder).",
        )
    if not architectures:
        return _attribute(transformers, "AutoModelForImageClassification")
    name = str(architectures[0])
    found = _attribute(transformers, name)
    base = _attribute(transformers, "PreTrainedModel")
    if isinstance(found, type) and issubclass(found, base):
        return found
    if "auto_map" in config:
        raise SourceError(
            f"The model {name!r} is code kept in the folder, which tokexport does not run.",
            where=str(folder / CONFIG),
            fix="Import the class yourself and pass package.module:factory.",
        )
    raise SourceError(
        f"There is no model {name!r} in transformers {transformers.__version__}.",
        where=str(folder / CONFIG),
        fix="Install the version of transformers that config.json names: "
        f"{config.get('transformers_version', 'it names none')}.",
    )


def _attribute(transformers: ModuleType, name: str) -> Any:
    """Returns the attribute of transformers with a name, or None; imports it only now."""
    try:
        return getattr(transformers, name, None)
    except (ImportError, RuntimeError) as error:
        cause = next(line for each in _causes(error) for line in str(each).splitlines() if line)
        raise PackageMissingError(
            f"transformers cannot import {name} here: {cause}",
            fix="Install torchvision and pillow in the versions that fit torch: "
            "pip install 'tokexport[timm,transformers]'",
        ) from error


def _causes(error: BaseException) -> list[BaseException]:
    """Returns what caused an error, the first cause first, and the error."""
    return [*(_causes(error.__cause__) if error.__cause__ else ()), error]


def _import_transformers() -> ModuleType:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise PackageMissingError(
            f"Reading a transformers folder needs {error.name!r}, which is not installed.",
            fix="pip install 'tokexport[transformers]'",
        ) from error
    return transformers  # type: ignore[no-any-return]


@contextmanager
def _offline() -> Iterator[None]:
    """Makes the hub's library refuse every request."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Keeps transformers' log and progress bars off the terminal; restores both."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
