"""Writes what ``ci/bench.py`` measured: a summary, every table, and the README's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench_figures import MODELS, REDUCTIONS, Figures, Lines, figures
from bench_plots import draw_floor, draw_speed
from marked_parts import put_part

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "BENCHMARKS.md"
TABLES = ROOT / "ci" / "BENCHMARK_TABLES.md"
IMAGES = ROOT / "docs" / "images"
#: The reduction and the batch that the README shows.
SHOWN = "tome:r=13", 1


def write(lines: Lines) -> None:
    """Writes the pages, the plots and the table of the README."""
    found = list(figures(lines))
    shown = shown_figures(found)
    IMAGES.mkdir(exist_ok=True)
    draw_speed(shown, IMAGES / "bench-speed.svg")
    draw_floor(found, IMAGES / "bench-floor.svg")
    PAGE.write_text(summary_page(lines, found), encoding="utf-8")
    TABLES.write_text(tables_page(lines), encoding="utf-8")
    put_part(ROOT / "README.md", "bench", readme_table(lines, shown))


def shown_figures(found: list[Figures]) -> list[Figures]:
    """Returns those of the reduction and the batch that the README shows."""
    wanted = [(one, (one.configuration.reduction, one.configuration.batch)) for one in found]
    return [one for one, key in wanted if key == SHOWN]


def summary_page(lines: Lines, found: list[Figures]) -> str:
    """Returns BENCHMARKS.md."""
    parts = [
        "# Benchmarks",
        "Written by `python ci/bench.py --write` from `ci/bench_results.jsonl`. Models of timm at "
        "224 × 224 with random weights under a seed, reduced with `--reduce`. Every number is a "
        "ratio of medians of interleaved rounds of one process, at batch 1 · at batch 8. "
        "[Every table](ci/BENCHMARK_TABLES.md) has times, intervals, minima and errors.",
        *dict.fromkeys(conditions(line) for line in lines.values()),
        "![Speed-up over the unreduced model's plain export](docs/images/bench-speed.svg)",
        "![Time over the GEMM floor, plain export and tokexport](docs/images/bench-floor.svg)",
        "- over its plain export: how many times as fast as `torch.onnx.export` of the same model "
        "on the same runtime, in the same precision, or in fp32 where it cannot.\n"
        "- over the unreduced model: that over the plain export of the model without its "
        "reduction; *compiled here*: over the unreduced model as tokexport compiles it.\n"
        "- ÷ floor: its time over that of the products with weights alone, in ONNX Runtime, fp32; "
        "1 is the floor, and a reduced precision may lie below.",
        summary_table(found),
    ]
    return "\n\n".join(parts) + "\n"


def summary_table(found: list[Figures]) -> str:
    """Returns a row for every model, method and runtime, with both batches."""
    headings = "over its plain export", "over the unreduced model", "compiled here", "÷ floor"
    rows = [f"| Model | Method | Runtime | {' | '.join(headings)} |"]
    rows.append("| --- | --- | --- |" + " ---: |" * len(headings))
    named: dict[tuple[str, str, str], list[Figures]] = {}
    for one in found:
        configuration = one.configuration
        key = MODELS[configuration.model], REDUCTIONS[configuration.reduction], one.runtime
        named.setdefault(key, []).append(one)
    for names, batches in named.items():
        fields = ("over_plain", "over_unreduced", "over_ours", "over_floor")
        cells = [" · ".join(number(getattr(one, field)) for one in batches) for field in fields]
        cells = [cell.strip(" ·") for cell in cells]
        rows.append(f"| {' | '.join([*names, *cells])} |")
    return "\n".join(rows)


def readme_table(lines: Lines, shown: list[Figures]) -> str:
    """Returns the table and the plot of the README."""
    runtimes = list(dict.fromkeys(one.runtime for one in shown))
    rows = [f"| | {' | '.join(runtimes)} |", "| --- |" + " ---: |" * len(runtimes)]
    for title, field in (
        ("over the unreduced model", "over_unreduced"),
        ("over its own plain export", "over_plain"),
    ):
        for model, name in MODELS.items():
            own = {one.runtime: one for one in shown if one.configuration.model == model}
            cells = [number(getattr(own[runtime], field)) for runtime in runtimes]
            rows.append(f"| {name}, {title} | {' | '.join(cells)} |")
    machine = next(conditions(line) for line in lines.values())
    return "\n".join(
        [
            f"How many times as fast as `torch.onnx.export` on the same runtime, with "
            f"{REDUCTIONS[SHOWN[0]]}, at batch {SHOWN[1]}:",
            "",
            *rows,
            "",
            "![The first three rows as bars](docs/images/bench-speed.svg)",
            "",
            f"{machine} [BENCHMARKS.md](BENCHMARKS.md) has more models, methods and batches, the "
            "distance to the floor, and every raw table.",
        ]
    )


def tables_page(lines: Lines) -> str:
    """Returns the page of every table."""
    from tokexport.exporter.bench.tables import LEGEND

    parts = [
        "# Benchmarks: every table",
        "Written by `python ci/bench.py --write` from `bench_results.jsonl`; "
        "[BENCHMARKS.md](../BENCHMARKS.md) has the summary. Every table is one process, in which "
        "its rows took turns.",
        "\n".join(f"- {text}" for text in LEGEND),
    ]
    for machine in dict.fromkeys(conditions(line) for line in lines.values()):
        parts.append(machine)
    for model, title in MODELS.items():
        own = {one: line for one, line in lines.items() if one.model == model}
        parts += [f"## {title}"] if own else []
        for reduction, named in REDUCTIONS.items():
            for one in sorted(own, key=lambda one: (one.batch, one.target)):
                if one.reduction == reduction:
                    parts.append(f"### {title}, {named}, batch {one.batch}, {one.target}")
                    parts.append(table(own[one]))
    return "\n\n".join(parts) + "\n"


def conditions(line: dict[str, Any]) -> str:
    """Returns the machine and the versions that a line was measured with."""
    machine = line["machine"]
    packages = ", ".join(
        f"{name} {machine['packages'][name].partition('+')[0]}"
        for name in ("torch", "onnxruntime", "openvino")
    )
    cores = machine["cores"]
    return (
        f"Machine: {machine['processor']}, {cores['usable']} of {cores['logical']} cores, "
        f"{machine['system'].partition('-')[0]}, Python {machine['python']}; {packages}."
    )


def table(line: dict[str, Any]) -> str:
    """Returns a result in Markdown."""
    found = line["found"]
    macs = found["macs"] / 1e9
    before = found["unreduced_macs"]
    ratio = f", {before / found['macs']:.2f} times as many unreduced" if before else ""
    load = " … ".join(f"{one:.1f}" for one in found["load"])
    limited = " (time limit)" if found["time_limited"] else ""
    lines = [
        f"{found['rounds']} rounds{limited}, {line['date']}, load {load}; MACs {macs:.3g} G"
        f"{ratio}; floor: {found['floor_products']} products, "
        f"{found['floor_macs'] / 1e9:.3g} G MACs.",
        "",
        "| | median ms | min ms | plain ÷ this (95 %) | of minima | ÷ floor | realised, plain | "
        "ours | off by | |",
        "| --- |" + " ---: |" * 8 + " --- |",
    ]
    return "\n".join([*lines, *map(markdown_row, found["rows"])])


def markdown_row(row: dict[str, Any]) -> str:
    """Returns a candidate in Markdown; one that could not run has its reason."""
    timing, plain, realised = row["timing"], row["over_plain"], row["realisation"] or {}
    note = f"wrong: {row['note']}" if row["wrong"] else row["note"]
    cells = [
        number(timing and timing["median_ms"]),
        number(timing and timing["min_ms"]),
        plain and f"{plain['of_medians']:.2f} ({plain['low']:.2f} … {plain['high']:.2f})",
        number(plain and plain["of_minima"]),
        number(row["over_floor"]),
        number(realised.get("over_plain")),
        number(realised.get("over_ours")),
        "" if row["error"] is None else f"{float(row['error']):.1e}",
        note.replace("|", "\\|"),
    ]
    return f"| {row['name']} | {' | '.join(cell or '' for cell in cells)} |"


def number(value: float | None) -> str:
    """Returns two decimals, or nothing."""
    return "" if value is None else f"{value:.2f}"
