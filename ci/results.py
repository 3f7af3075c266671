"""Measures patched models against eager, and puts the table in a guide with ``--write``.

Each row is one runtime on one patched model: how far its logits lie from eager PyTorch, and how
much faster it is, in interleaved pairs with eager. The export that PyTorch itself offers is
measured through the same runner, so that it can be compared.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from marked_parts import put_part

if TYPE_CHECKING:
    from tokexport.exporter.speed.interleaved import Ratio

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "guides" / "own-merging-code.md"
MODELS = {"DeiT-Ti": "deit_tiny_patch16_224", "DeiT-S": "deit_small_patch16_224"}
MERGED = 13
TARGETS = {"ort": "`--target ort`", "openvino": "`--target openvino`"}
HEADINGS = (
    "Model",
    "Run as",
    "Largest error, of the output's scale",
    "Gate",
    "Times as fast as eager (95 % interval)",
)


def main() -> int:
    """Measures, prints, and writes where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="Replace the table in the guide.")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.torchvision_ops import define_torchvision_operators

    define_torchvision_operators()
    rows = [row for title, name in MODELS.items() for row in measured(title, name)]
    text = table(rows) + "\n\n" + conditions()
    print(text)
    if options.write:
        put_part(PAGE, "results", text)
    return 0


def measured(title: str, name: str) -> Iterator[tuple[str, ...]]:
    """Yields the rows of one model, with random weights under a seed."""
    import torch
    from models.tome_patched import patched

    import tokexport

    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    title = f"{title}, ToMe r = {MERGED}"
    with tempfile.TemporaryDirectory() as folder:
        yield title, "`torch.onnx.export` in ONNX Runtime", *plain_export(name, Path(folder))
        for target, shown in TARGETS.items():
            result = tokexport.compile(
                patched(name, MERGED), image, target, output=Path(folder) / target
            )
            report = result.report
            (gate,) = report.gates.values()
            (comparison,) = report.stages[-1].comparisons.values()
            assert report.speed is not None
            (ratio,) = report.speed.ratios.values()
            yield (
                title,
                shown,
                f"{comparison.relative:.1e}",
                f"{gate.tolerance:.1e}",
                ratio_text(ratio),
            )


def plain_export(name: str, folder: Path) -> tuple[str, str, str]:
    """Returns error, gate and speed of the export that PyTorch itself offers."""
    import torch
    from models.tome_patched import patched

    from tokexport.exporter.speed.interleaved import measure
    from tokexport.runtimes.ort.runner import OrtRunner
    from tokexport.runtimes.tolerances.comparison import compare

    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    model = patched(name, MERGED)
    path = folder / "plain.onnx"
    # An export leaves a patched model broken: the one that is timed is another.
    torch.onnx.export(patched(name, MERGED), (image,), str(path), dynamo=True, verbose=False)
    with OrtRunner.from_file(path) as runner, torch.no_grad():
        (spec,) = runner.inputs
        arrays = {spec.name: image.numpy()}
        (found,) = runner.run(arrays).values()
        error = compare(model(image).numpy(), found).relative
        speed = measure(
            {"eager": lambda: model(image), "plain": lambda: runner.run(arrays)}, baseline="eager"
        )
    ratio = speed.ratios["plain"]
    return f"{error:.1e}", "–", ratio_text(ratio)


def ratio_text(ratio: Ratio) -> str:
    """Returns a ratio with its interval; one that the minima contradict is marked."""
    noisy = f", noisy: {ratio.of_minima:.2f} of minima" if ratio.noisy else ""
    return f"{ratio.of_medians:.2f} ({ratio.low:.2f} … {ratio.high:.2f}{noisy})"


def table(rows: list[tuple[str, ...]]) -> str:
    """Returns the rows in Markdown, a model's name only in its first row."""
    lines = [HEADINGS, tuple("---" for _ in HEADINGS)]
    last = ""
    for row in rows:
        lines.append(("" if row[0] == last else row[0], *row[1:]))
        last = row[0]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def conditions() -> str:
    """Returns the sentence that says what the numbers were measured on."""
    import torch

    from tokexport.exporter.system.machine import describe_machine

    machine = describe_machine()
    packages = ", ".join(
        f"{name} {machine['packages'][name].partition('+')[0]}"
        for name in ("torch", "onnxruntime", "openvino")
    )
    return (
        "Batch 1, fp32, 224 × 224, random weights and random inputs under a fixed seed; "
        f"{machine['processor']}, {machine['cores']['usable']} cores, "
        f"{torch.get_num_threads()} threads in eager; {packages}."
    )


if __name__ == "__main__":
    sys.exit(main())
