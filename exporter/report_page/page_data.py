"""Holds what a page shows beside ``report.json``, and keeps it in ``page.json``.

::

    page.json
        blocks, outside     cost, tokens and time of every block
        tokens              which token holds which patch, at every attention
        pictures            the samples that they are drawn on, as small PNG
        errors              how the errors of each stage are distributed
        failure             why the compile failed; null where it did not
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tokexport.exporter.json_values import plain
from tokexport.exporter.parity.distribution import Distribution
from tokexport.exporter.report.block_parts import Part
from tokexport.graph_passes.analysis.token_origins import TokenOrigins

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True)
class Failure:
    """Why a compile ended.

    Attributes:
        kind: The class of the error: ``ParityError``.
        what: What happened, a sentence.
        where: Where, and what it means.
        fix: What to do now.
    """

    kind: str
    what: str
    where: str
    fix: str


@dataclass(frozen=True)
class BlockTimes:
    """What the blocks of an artifact took, by the profile of its runtime.

    Attributes:
        block_ms: Milliseconds of each block, in their order; None where no node of it is known.
        outside_ms: Those of all nodes outside the blocks.
        runs: How many runs they are medians of.
        unnamed_share: The share of the time in nodes of which the name does not say the block:
            they count with the block before them.
    """

    block_ms: tuple[float | None, ...]
    outside_ms: float
    runs: int
    unnamed_share: float


@dataclass(frozen=True, kw_only=True)
class PageData:
    """What a page of a compile shows beside its report.

    Attributes:
        blocks: The blocks, in order.
        outside: What lies outside the blocks; None where nothing was counted.
        times: What the blocks took; None where it is not known.
        times_why_not: Why it is not, a clause.
        tokens: What becomes of the patches of the pictures; None where it is not known.
        tokens_why_not: Why it is not, a clause.
        pictures: The samples, as data URIs.
        errors: How the errors are distributed, by stage and output.
        failure: Why the compile failed; None where it did not.
    """

    blocks: tuple[Part, ...] = ()
    outside: Part | None = None
    times: BlockTimes | None = None
    times_why_not: str = ""
    tokens: TokenOrigins | None = None
    tokens_why_not: str = ""
    pictures: tuple[str, ...] = ()
    errors: Mapping[str, Mapping[str, Distribution]] = field(default_factory=dict)
    failure: Failure | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns plain values under the attributes' names, with ``schema_version`` before them."""
        return {"schema_version": SCHEMA_VERSION, **plain(self)}

    def write(self, path: Path) -> None:
        """Writes ``to_json`` into a file."""
        text = json.dumps(self.to_json(), ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
