"""Reads a recipe, the method and options of a reduction: ``NAME:key=value,…``, TOML or JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tokexport.exporter.errors import UsageError
from tokexport.graph_passes.reduction.errors import SurgeryError
from tokexport.graph_passes.reduction.method import Method
from tokexport.graph_passes.reduction.methods.known import METHODS
from tokexport.runtimes.files.regular_files import read_at_most

#: The key of a file that names the method.
METHOD: Final = "method"
#: Bytes of a recipe in a file; an honest one has some hundred.
_LARGEST_FILE: Final = 1 << 14
#: The largest number of an option, where torch's numbers end.
_MOST: Final = 2**31 - 1
#: Characters of a value that a message shows.
_SHOWN: Final = 80


@dataclass(frozen=True)
class Recipe:
    """A method and where it goes.

    Attributes:
        method: The method with its options.
        text: The recipe in one line, as a user would write it.
        protect: How many special tokens there are at the front; None has them found.
        blocks: The container of the blocks; None has it found.
        restore: Whether all tokens are put back: behind the last block and each whose output more
            than the next block reads (True), behind the last and those of these numbers, or not at
            all (False).
        weights: A file of the method's own trained parameters, or None.
        given: The options as they were written, by name.
    """

    method: Method
    text: str
    protect: int | None = None
    blocks: str | None = None
    restore: bool | tuple[int, ...] = False
    weights: str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)


#: The options that every recipe takes beside the method's own, and their meaning.
PLACEMENT: Final[dict[str, str]] = {
    "protect": "how many tokens at the front are special; found where it is left out",
    "blocks": "the container of the blocks, such as encoder.layers; found where it is left out",
    "restore": "true puts every token back where the model reads them behind a block, [2,5] behind "
    "these blocks and the last",
    "weights": "a .safetensors or .pt file of the method's own trained parameters",
}


def parse_recipe(text: str | Path | Method | Recipe) -> Recipe:
    """Reads a recipe.

    Args:
        text: ``tome``, ``tome:r=8``, ``evit:keep=0.7,layers=[3,6,9]``, or the path of a .toml or
            .json file with the key ``method`` and the options beside it. A method of your own may
            stand for itself.

    Raises:
        UsageError: A method or option is unknown, or a value is invalid; the message names the
            known ones.
    """
    if isinstance(text, Recipe):
        return text
    if isinstance(text, Method):
        changed = _changed(text)
        return Recipe(text, _written(text.name, changed), given=changed)
    if _is_file(text):
        return _read_file(Path(text))
    name, found, options = str(text).partition(":")
    given: dict[str, Any] = {}
    for part in _split(options) if found else ():
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(
                f"'{part}' in the recipe has no value.", where=str(text), fix="Write key=value."
            )
        if key.strip() in given:
            raise UsageError(
                f"'{key.strip()}' is twice in the recipe.",
                where=str(text),
                fix="Leave one of them out.",
            )
        given[key.strip()] = _literal(value.strip())
    return _recipe(name.strip(), given, str(text))


def restoring(recipe: Recipe) -> Recipe:
    """Returns a recipe that restores every token, unless it names blocks already."""
    if recipe.restore is not False:
        return recipe
    given = {**recipe.given, "restore": True}
    text = _written(recipe.method.name, given)
    return dataclasses.replace(recipe, restore=True, given=given, text=text)


def with_option(recipe: Recipe, key: str, value: Any) -> Recipe:
    """Returns a recipe with another value of one of the method's options.

    Raises:
        UsageError: The method does not have the option, or the value is invalid.
    """
    method = recipe.method
    own = [one.name for one in dataclasses.fields(method)]
    if key not in own:
        raise UsageError(
            f"Method '{method.name}' has no option '{key}'.", fix=f"It has {', '.join(own)}."
        )
    hint = typing.get_type_hints(type(method))[key]
    fitted = _fitted(key, value, hint, recipe.text)
    given = {**recipe.given, key: value}
    text = _written(method.name, given)
    try:
        changed = dataclasses.replace(method, **{key: fitted})
    except SurgeryError as error:
        raise UsageError(error.what, where=text, fix=error.fix) from error
    return dataclasses.replace(recipe, method=changed, given=given, text=text)


def parse_values(text: str) -> list[Any]:
    """Reads values separated by commas: ``4,8,12`` or ``[8,8,4],[4,4,2]``."""
    return [_literal(part) for part in _split(text)]


def _split(options: str) -> list[str]:
    """Splits at the commas that stand outside brackets."""
    return [part.strip() for part in re.split(r",(?![^\[]*\])", options) if part.strip()]


def _literal(text: str) -> Any:
    """Reads JSON (a number, true, false, a list), or else takes the text itself."""
    for read in (json.loads, float):
        try:
            return read(text)
        except (ValueError, RecursionError):
            continue
    return text


def _is_file(text: str | Path) -> bool:
    """Returns whether a text names a file, not a recipe: ``diffrate:schedule=FILE.json``."""
    if isinstance(text, Path):
        return True
    method = text.partition(":")[0].strip()
    named = any(method == kind.name for kind in METHODS)
    return not named and Path(text).suffix.lower() in (".toml", ".json")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the object of a JSON file, none of whose keys may stand twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key '{key}' stands twice")
        found[key] = value
    return found


def _read_file(path: Path) -> Recipe:
    try:
        # Some editors put a byte-order mark first.
        text = read_at_most(path, _LARGEST_FILE).decode("utf-8-sig")
        if path.suffix.lower() == ".toml":
            given = tomllib.loads(text)
        else:
            given = json.loads(text, object_pairs_hook=_each_once)
    except FileNotFoundError as error:
        raise UsageError(
            "The recipe does not exist.",
            where=str(path),
            fix="Pass the path of a .toml or .json file, or a recipe in one line: tome:r=8",
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"The recipe cannot be read: {error}",
            where=str(path),
            fix='Write TOML or JSON with the method and its options: method = "tome"',
        ) from error
    if not isinstance(given, dict) or not isinstance(given.get(METHOD), str):
        raise UsageError(
            f"The recipe names no {METHOD}.", where=str(path), fix=f'Write {METHOD} = "tome".'
        )
    return _recipe(given.pop(METHOD), given, str(path))


def _recipe(name: str, given: dict[str, Any], where: str) -> Recipe:
    kinds = {kind.name: kind for kind in METHODS}
    if name not in kinds:
        raise UsageError(
            f"There is no method '{name}'.", where=where, fix=f"Take one of {', '.join(kinds)}."
        )
    kind = kinds[name]
    hints = {**typing.get_type_hints(kind), **typing.get_type_hints(Recipe)}
    own = [one.name for one in dataclasses.fields(kind)]
    unknown = [key for key in given if key not in own and key not in PLACEMENT]
    if unknown:
        raise UsageError(
            f"Method '{name}' has no option '{unknown[0]}'.",
            where=where,
            fix=f"It has {', '.join(own)}; every method has {', '.join(PLACEMENT)}.",
        )
    values = {key: _fitted(key, value, hints[key], where) for key, value in given.items()}
    try:
        method = kind(**{key: value for key, value in values.items() if key in own})
    except SurgeryError as error:
        raise UsageError(error.what, where=where, fix=error.fix) from error
    placement = {key: value for key, value in values.items() if key in PLACEMENT}
    return Recipe(method, _written(name, given), given=given, **placement)


def _fitted(key: str, value: Any, hint: Any, where: str) -> Any:
    """Brings a value to the type of its option."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in kinds:
        if isinstance(value, list) and typing.get_origin(kind) is tuple:
            inner = typing.get_args(kind)[0]
            return tuple(_fitted(key, one, inner, where) for one in value)
        if isinstance(value, float) and not math.isfinite(value):
            break
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            if isinstance(value, int) and abs(value) > _MOST:
                break
            return float(value) if int not in kinds or isinstance(value, float) else value
        if isinstance(kind, type) and type(value) is kind:
            if isinstance(value, int) and abs(value) > _MOST:
                break
            return value
    raise UsageError(
        f"Option '{key}' of the recipe is {_shown(value)}.",
        where=where,
        fix=f"Give {' or '.join(_KINDS.get(kind, 'a list: [1,2,3]') for kind in kinds)}.",
    )


def _shown(value: Any) -> str:
    """Returns a value as a message shows it, cut where it is long."""
    try:
        text = json.dumps(value, default=str)
    except RecursionError:
        return "lists within lists"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


_KINDS: Final[Mapping[Any, str]] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    type(None): "nothing",
}


def _changed(method: Method) -> dict[str, Any]:
    """Returns the options that are not at their defaults."""
    return {
        field.name: getattr(method, field.name)
        for field in dataclasses.fields(method)
        if getattr(method, field.name) != field.default
    }


def _written(name: str, given: Mapping[str, Any]) -> str:
    options = [
        f"{key}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}"
        for key, value in given.items()
    ]
    return f"{name}:{','.join(options)}" if options else name
