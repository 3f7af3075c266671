"""Finds which token holds which patch of some samples, and the pictures to draw that on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from torch.export import ExportedProgram

from tokexport.exporter.eager.reference import tensors_of
from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.report_page.drawing.thumbnails import image_axes, thumbnail
from tokexport.exporter.torch_warnings import torch_warnings_silenced
from tokexport.graph_passes.analysis.token_origins import TokenOrigins, token_origins

#: Pictures that the tokens are drawn on.
MOST_PICTURES: Final = 4
#: More tokens than this, over all steps and pictures, are drawn on fewer pictures.
_MOST_PLACES: Final = 60_000
#: Pixels along the longer side of a picture that is drawn alone.
_LARGE: Final = 448


@dataclass(frozen=True)
class DrawnTokens:
    """What becomes of the patches of some pictures.

    Attributes:
        tokens: Which token holds which patch, at every attention; None where it is not known.
        why_not: Why it is not, or not at every attention, a clause; '' where it is.
        pictures: The pictures, as PNG in data URIs.
    """

    tokens: TokenOrigins | None
    why_not: str = ""
    pictures: tuple[str, ...] = ()


def drawn_tokens(program: ExportedProgram, batches: Batches, large: bool = False) -> DrawnTokens:
    """Runs a rewritten program on the first samples, and follows their patches.

    Args:
        program: The program, with operators of domain ``tokexport``.
        batches: The samples.
        large: Whether the pictures are to be large.
    """
    pictures = batches.arrays[batches.names[0]] if batches.names else None
    if pictures is None or image_axes(pictures.shape[1:]) is None:
        return DrawnTokens(
            None, "the model's first input is no picture: (batch, 1 or 3 channels, rows, columns)"
        )
    wanted = min(batches.samples, MOST_PICTURES)
    given = (
        tensors_of({name: batches.arrays[name][row, ...] for name in batches.names})
        for row in range(len(batches))
    )
    with torch_warnings_silenced():
        found = token_origins(program, given, wanted)
    if not found.steps:
        return DrawnTokens(found, found.why_not)
    samples = pictures[: -(-wanted // pictures.shape[1])].reshape(-1, *pictures.shape[2:])
    places = sum(len(step.holders[0]) for step in found.steps)
    shown = max(1, min(wanted, _MOST_PLACES // max(places, 1)))
    sides = {"side": _LARGE} if large else {}
    small = tuple(thumbnail(samples[[row]], **sides) for row in range(shown))
    return DrawnTokens(found.of_first(shown), found.why_not, small)
