"""Refuses what a transformers configuration may not ask for: the network, and endless models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from tokexport.exporter.errors import SourceError

#: Parts of the names of numbers that count what is made one by one, and the most of them.
_COUNTED: Final = ("layer", "depth", "block", "stage")
_MOST: Final = 10_000
#: Levels of a configuration; an honest one has four.
_DEEPEST: Final = 30
#: Numbers that a model may hold beside its weights: tables of positions, and the like.
_MOST_IN_BUFFERS: Final = 1 << 26
#: What a model may have in any case, so that damaged weights are told as such.
_SMALL: Final = 1 << 17


def check_config(config: Any, path: Path, depth: int = 0) -> None:
    """Refuses a configuration, at any depth, that makes transformers fetch something by its name.

    Those are attention kernels, and backbones whose weights or configuration lie elsewhere. Nor may
    it count so many layers that they are never all made.

    Args:
        config: What the file holds, or a part of it.
        path: The file.
        depth: How deep the part lies.

    Raises:
        SourceError: It does.
    """
    if depth > _DEEPEST:
        raise SourceError(f"{path.name} nests deeper than a configuration does.", where=str(path))
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
    """Ends the building of a model that has far more numbers than there are bytes of weights.

    torch calls back for each parameter and buffer that a module registers, and transformers builds
    modules without memory for their numbers.

    Args:
        weight_bytes: The bytes of its weights. A byte is a number at the most, and weights that
            are tied count twice.
        folder: The folder, for the message.

    Raises:
        SourceError: It has; nothing of it could be loaded.
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
