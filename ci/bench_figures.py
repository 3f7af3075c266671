"""Reads what ``ci/bench.py`` measured, and says what each compiled model came to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("bench_results.jsonl")
MODELS = {
    "deit_tiny_patch16_224": "DeiT-T",
    "deit_small_patch16_224": "DeiT-S",
    "vit_base_patch16_224": "ViT-B",
}
REDUCTIONS = {"": "unreduced", "tome:r=13": "ToMe, r = 13", "mctf:r=16": "MCTF, r = 16"}


@dataclass(frozen=True)
class Configuration:
    """What one run measures."""

    model: str
    reduction: str
    batch: int
    target: str

    @classmethod
    def of(cls, line: dict[str, Any]) -> Configuration:
        """Returns that of a line of the results."""
        return cls(line["model"], line["reduction"], line["batch"], line["target"])


def latest(results: Path) -> dict[Configuration, dict[str, Any]]:
    """Returns the last line of each configuration that did not fail."""
    if not results.exists():
        return {}
    lines = [json.loads(text) for text in results.read_text(encoding="utf-8").splitlines()]
    return {Configuration.of(line): line for line in lines if "failed" not in line}


Lines = dict[Configuration, dict[str, Any]]


@dataclass(frozen=True)
class Figures:
    """What one compiled model came to: ratios of medians of the same interleaved rounds.

    Attributes:
        configuration: What was measured.
        precision: What it computes in.
        over_plain: How many times as fast as its plain export on the same runtime.
        over_unreduced: How many times as fast as the plain export of the unreduced model; None
            where nothing is reduced.
        over_ours: How many times as fast as the unreduced model compiled here; None likewise.
        over_floor: Its time over that of the GEMM floor.
        plain_over_floor: That of its plain export.
    """

    configuration: Configuration
    precision: str
    over_plain: float
    over_unreduced: float | None
    over_ours: float | None
    over_floor: float
    plain_over_floor: float

    @property
    def runtime(self) -> str:
        """What it ran in: ``ort fp32``."""
        return f"{self.configuration.target} {self.precision}"


def figures(lines: Lines) -> Iterator[Figures]:
    """Yields the figures of every compiled model, those of a model and a method together."""
    order = [(model, reduction) for model in MODELS for reduction in REDUCTIONS]
    for one in sorted(lines, key=lambda one: (order.index((one.model, one.reduction)), one.batch)):
        rows = {row["name"]: row for row in lines[one]["found"]["rows"]}
        for name, row in rows.items():
            way = row["candidate"]
            if way["way"] != "tokexport" or way["unreduced"] or row["timing"] is None:
                continue
            plain = f"plain export, {one.target} {way['precision']}"
            if plain not in rows:  # it has no form in this precision
                plain = f"plain export, {one.target} fp32"
            yield Figures(
                configuration=one,
                precision=way["precision"],
                over_plain=row["over_plain"]["of_medians"],
                over_unreduced=speed_up(rows, f"unreduced: {plain}", name),
                over_ours=speed_up(rows, f"unreduced: {name}", name),
                over_floor=row["over_floor"],
                plain_over_floor=rows[plain]["over_floor"],
            )


def speed_up(rows: dict[str, Any], slow: str, fast: str) -> float | None:
    """Returns the median of one row over that of another; None where one was not timed."""
    before, after = (rows.get(name, {}).get("timing") for name in (slow, fast))
    if before is None or after is None:
        return None
    return float(before["median_ms"] / after["median_ms"])
