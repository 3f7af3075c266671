"""Finds the JSON Schemas of the files and of what the commands print; imports nothing heavy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from tokexport.exporter.errors import UsageError

FOLDER: Final = Path(__file__).parent
#: The folders of the schemas, and what is added to a file's name to have that of the schema.
KINDS: Final = {"files": ".json", "commands": ""}
_ENDING: Final = ".schema.json"


@dataclass(frozen=True)
class StoredSchema:
    """A JSON Schema.

    Attributes:
        name: The file that it describes, or the command whose ``--json`` it describes.
        version: The version of what it describes.
        id: Its ``$id``, which ends with the version.
        about: What it describes, a sentence.
    """

    name: str
    version: int
    id: str
    about: str

    @cached_property
    def text(self) -> str:
        """The schema as it is stored."""
        return _path(self.name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class SchemaList:
    """The JSON Schemas.

    Attributes:
        schemas: Those of the files first, then those of the commands.
    """

    schemas: tuple[StoredSchema, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns plain values under the attributes' names."""
        return {
            "schemas": [
                {"name": one.name, "version": one.version, "id": one.id, "about": one.about}
                for one in self.schemas
            ]
        }


def all_schemas() -> SchemaList:
    """Returns all schemas."""
    return SchemaList(tuple(_read(name) for name in _names()))


def schema(name: str) -> StoredSchema:
    """Returns the schema of a file (``report.json``) or of a command (``compile``).

    Args:
        name: The file or the command; ``.json`` may be left out of a file that is no command.

    Raises:
        UsageError: No file and no command has that name.
    """
    names = _names()
    for wanted in (name, f"{name}.json"):
        if wanted in names:
            return _read(wanted)
    near = get_close_matches(name, names, n=1)
    raise UsageError(
        f"There is no schema '{name}'.",
        fix=f"Did you mean {near[0]}?" if near else f"Pass one of {', '.join(names)}.",
    )


def _names() -> tuple[str, ...]:
    return tuple(
        path.name.removesuffix(_ENDING) + added
        for folder, added in KINDS.items()
        for path in sorted((FOLDER / folder).glob(f"*{_ENDING}"))
    )


def _path(name: str) -> Path:
    folder = "files" if name.endswith(".json") else "commands"
    return FOLDER / folder / f"{name.removesuffix('.json')}{_ENDING}"


def _read(name: str) -> StoredSchema:
    data = json.loads(_path(name).read_text(encoding="utf-8"))
    about = data["description"].partition(". ")[0]
    return StoredSchema(name, int(data["$id"].rpartition(":")[2]), data["$id"], f"{about}.")
