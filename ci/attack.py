"""Attacks the project: damaged bundles, crafted nodes, sources, kills and limits, in processes.

    python ci/attack.py                        runs what has not been; may be stopped
    python ci/attack.py --kind bundles         of this kind alone; may be repeated
    python ci/attack.py --minutes 60           begins no more lines then
    python ci/attack.py --again                runs anew what was not as it should be
    python ci/attack.py replay bundles 1234    runs one case, and prints its messages in full
    python ci/attack.py table                  writes ATTACK.md from what is known

A kind, the seed and a number define a case, which runs in a child process of one target
(``attacks/child.py``), which is started anew when a case ended it, took too long or more memory
than it may. About a hundred cases make a line of ``attack.jsonl``, with all that was not refused
clearly or run rightly in full. What cases start from lies in ``build/attack``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from attacks.child import Child
from attacks.kinds import FINE, NAMES, ROOT, VERDICTS, Kind, kind_named
from attacks.page import page
from places import without_places

TABLE = ROOT / "ci" / "ATTACK.md"
SEED = 0


def main() -> int:
    """Runs, replays or writes, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", nargs="?", default="run", choices=("run", "replay", "table"))
    parser.add_argument("case", nargs="*", help="Of replay: the kind, and numbers of cases.")
    parser.add_argument("--kind", action="append", choices=NAMES, help="Only this one.")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--count", type=int, help="How many cases of each kind, not as planned.")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--again", action="store_true", help="Run lines with findings anew, too.")
    options = parser.parse_args()
    campaign = Campaign()
    if options.command == "table":
        TABLE.write_text(page(campaign.known(), planned()), encoding="utf-8")
        return 0
    if options.command == "replay":
        name, *numbers = options.case
        return campaign.replay(kind_named(name), options.seed, [int(one) for one in numbers])
    end = time.monotonic() + 60 * options.minutes
    for name in options.kind or planned():
        campaign.run_kind(kind_named(name), options.seed, options.count, end, again=options.again)
    return 0


def planned() -> list[str]:
    """Returns the kinds of attacks."""
    return [name for name in NAMES if (ROOT / "ci" / "attacks" / f"{name}.py").exists()]


@dataclass(frozen=True)
class Campaign:
    """The lines of results, and the folder that the cases are made in."""

    results: Path = ROOT / "ci" / "attack.jsonl"
    folder: Path = ROOT / "build" / "attack"

    def known(self) -> list[dict[str, Any]]:
        """Returns the lines of the results."""
        if not self.results.exists():
            return []
        return [json.loads(line) for line in self.results.read_text(encoding="utf-8").splitlines()]

    def run_kind(
        self, kind: Kind, seed: int, count: int | None, end: float, *, again: bool
    ) -> None:
        """Runs the lines of a kind that have no result."""
        done = {
            (one["kind"], one["seed"], one["first"]): one["count"]
            for one in self.known()
            if not (again and one["found"])
        }
        kind.prepare(self.folder / kind.name)
        total = kind.planned if count is None else count
        for first in range(0, total, kind.length):
            length = min(kind.length, total - first)
            if done.get((kind.name, seed, first), 0) >= length or kind.absent(kind.target(first)):
                continue
            if time.monotonic() > end:
                return
            line = self.run_line(kind, seed, first, length)
            self.write(line)
            verdicts = ", ".join(f"{number} {name}" for name, number in line["verdicts"].items())
            result = f"{kind.name} {first} … {first + length - 1}, {line['target']}: {verdicts}"
            print(f"{result} in {line['seconds']} s", flush=True)

    def run_line(self, kind: Kind, seed: int, first: int, count: int) -> dict[str, Any]:
        """Runs some cases, all of one target, and returns their line."""
        begin = time.monotonic()
        target = kind.target(first)
        with Child(kind, target, self.folder / kind.name, seed) as child:
            result = [child.run(index) for index in range(first, first + count)]
        return {
            "kind": kind.name,
            "target": target,
            "on": child.on,
            "seed": seed,
            "first": first,
            "count": count,
            "verdicts": dict(Counter(one.verdict for one in result)),
            "seconds": round(time.monotonic() - begin, 1),
            "found": [asdict(one) for one in result if one.verdict not in FINE],
        }

    def write(self, line: dict[str, Any]) -> None:
        """Writes a line in place of that of the same cases, or after all others."""
        key = ("kind", "seed", "first")
        lines = [one for one in self.known() if any(one[part] != line[part] for part in key)]
        texts = [without_places(json.dumps(one, ensure_ascii=False)) for one in (*lines, line)]
        self.results.write_text("\n".join(texts) + "\n", encoding="utf-8")

    def replay(self, kind: Kind, seed: int, numbers: list[int]) -> int:
        """Runs cases and prints their outcomes; returns 1 if one was not as it should be."""
        kind.prepare(self.folder / kind.name)
        fine = True
        for index in numbers:
            with Child(kind, kind.target(index), self.folder / kind.name, seed) as child:
                result = child.run(index)
            fine &= result.verdict in FINE
            print(f"{kind.name} {index}, {kind.target(index)}: {result.what}")
            print(f"{result.verdict} ({VERDICTS[result.verdict]}): {result.said}")
        return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
