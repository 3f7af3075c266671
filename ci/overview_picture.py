"""Draws the README's picture of what tokexport does: ``python ci/overview_picture.py``.

It has no background and a grey ink, so that it reads on light pages and on dark ones.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "overview.svg"
INK: Final = "#7d8590"
BLUE, GREEN, ORANGE = "#3f80dd", "#3fa34d", "#c9772b"
#: Tokens that enter each of twelve blocks of DeiT with ToMe, r = 13.
TOKENS: Final = (197, 184, 171, 158, 145, 132, 119, 106, 93, 80, 67, 54)
STAGES: Final = ("traced\ngraph", "rewritten\ngraph", "ONNX", "artifact")
RUNTIMES: Final = ("ONNX Runtime", "OpenVINO", "TensorRT")


def main() -> int:
    """Draws the picture."""
    draw(PICTURE)
    return 0


def draw(path: Path) -> None:
    """Draws the picture into a file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "tokexport", "text.color": INK, "font.size": 10}):
        figure = Figure(figsize=(10.0, 3.6))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 36)
        axes.axis("off")
        _box(axes, 1, 17, 13, 9, "your ViT\nin PyTorch", INK)
        _tokens(axes, 17.5, 17)
        for number, name in enumerate(STAGES):
            left = 37 + 11.4 * number
            _box(axes, left, 17, 9, 9, name, BLUE)
            _arrow(axes, (left - 2.4, 21.5), (left, 21.5))
            axes.annotate(
                "",
                (left + 4.5, 16.6),
                (left + 4.5, 9.4),
                arrowprops={"arrowstyle": "<->", "color": GREEN, "lw": 1.2},
            )
            axes.text(left + 5.3, 12.9, "agrees", color=GREEN, size=9, va="center")
        _arrow(axes, (14, 21.5), (16.8, 21.5))
        _arrow(axes, (7.5, 17), (7.5, 9))
        _box(axes, 1, 3, 79.2, 6, "eager PyTorch, fp32: what every stage is held to", GREEN)
        for number, name in enumerate(RUNTIMES):
            _box(axes, 84.5, 26.5 - 7.5 * number, 14.5, 5.6, name, ORANGE)
            _arrow(axes, (80.2, 21.5), (84.3, 29.3 - 7.5 * number))
        axes.text(91.8, 7.4, "a bundle: model, proof,\nspeed on this machine", ha="center", size=9)
        axes.text(58.5, 29.2, "compiled with static shapes", ha="center", size=9)
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, transparent=True, metadata={"Date": None}, dpi=100)


def _box(
    axes: Axes, left: float, low: float, wide: float, high: float, text: str, ink: str
) -> None:
    """Draws a box with its text in the middle."""
    from matplotlib.patches import FancyBboxPatch

    shape: Any = FancyBboxPatch(
        (left, low),
        wide,
        high,
        boxstyle="round,pad=0,rounding_size=1",
        facecolor=(*_rgb(ink), 0.12),
        edgecolor=ink,
        linewidth=1.3,
    )
    axes.add_patch(shape)
    axes.text(left + wide / 2, low + high / 2, text, ha="center", va="center", color=ink)


def _tokens(axes: Axes, left: float, low: float) -> None:
    """Draws the tokens of each block as bars that become shorter."""
    for number, tokens in enumerate(TOKENS):
        high = 9 * tokens / TOKENS[0]
        axes.bar(left + 1.45 * number, high, 1.1, low, align="edge", color=BLUE, alpha=0.75)
    axes.text(left, low + 9.6, str(TOKENS[0]), size=8, ha="left")
    axes.text(left + 16.5, low + 2.8, str(TOKENS[-1]), size=8, ha="center")
    axes.text(
        left + 8.7,
        low + 12.2,
        "tokens merge, block by block:\nits own way, or put in",
        ha="center",
        size=9,
    )


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": INK, "lw": 1.3})


def _rgb(colour: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(colour)


if __name__ == "__main__":
    sys.exit(main())
