"""Lets several IRs of OpenVINO read their weights from one file."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tokexport.exporter.shared_weights.pool import WeightPool
from tokexport.runtimes.files.ir_contents import weights_beside


def share_ir_weights(places: Mapping[Path, Path]) -> None:
    """Writes IRs anew, with one ``.bin`` beside them: that of the first.

    Args:
        places: Where each ``.xml`` goes, by where it is, its ``.bin`` beside it; all go into one
            folder, under names that have that ``.bin``. An IR may go where it is.
    """
    shared = weights_beside(next(iter(places.values())))
    partial = shared.with_name(f"{shared.name}.partial")
    trees = {}
    with partial.open("wb") as file:
        pool = WeightPool(file)
        for source, target in places.items():
            trees[target] = ElementTree.parse(source)
            with _mapped(source.with_suffix(".bin")) as own:
                for place in _constants(trees[target]):
                    begin, size = int(place.get("offset", "")), int(place.get("size", ""))
                    place.set("offset", str(pool.place(own[begin : begin + size])))
    for target, tree in trees.items():
        tree.write(target, encoding="utf-8", xml_declaration=True)
    partial.replace(shared)


def _constants(tree: ElementTree.ElementTree[Any]) -> Iterator[ElementTree.Element]:
    """Yields where a layer says which bytes are its numbers."""
    for data in tree.iter("data"):
        if data.get("offset") is not None and data.get("size") is not None:
            yield data


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap | bytes]:
    """Maps a file into memory; one of no bytes cannot be."""
    if path.stat().st_size == 0:
        yield b""
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content
