"""Computes how many tokens each layer removes."""

from __future__ import annotations

from tokexport.graph_passes.reduction.method import Layer, check


def at_layer(
    r: int | float | tuple[int | float, ...], layer: Layer, inflection: float = 0.0
) -> float:
    """Returns a layer's amount from one number, or from a list with one for each layer.

    Args:
        r: One number for all layers, or one for each.
        layer: Which.
        inflection: Makes one number rise (1), stay (0) or fall (-1) from the first layer to the
            last: from r(1 - inflection) to r(1 + inflection) (ToMe, section 3, "token merging
                schedule").

    Raises:
        SurgeryError: The list is of another length.
    """
    if isinstance(r, tuple):
        check(
            len(r) == layer.depth,
            f"The list holds {len(r)} numbers, and the model has {layer.depth} blocks.",
            "Give one number for each block, or one for all.",
        )
        return r[layer.index]
    if inflection == 0.0:
        return r
    first, last = r * (1 - inflection), r * (1 + inflection)
    step = (last - first) / max(layer.depth - 1, 1)
    return int(first + step * layer.index)


def at_quarters(layers: tuple[int, ...] | None, layer: Layer) -> bool:
    """Returns whether a block is among the named ones; by default 3, 6 and 9 of 12."""
    if layers is not None:
        return layer.index in layers
    return layer.index in {layer.depth * part // 4 for part in (1, 2, 3)}


def at_encoder_end(layers: tuple[int, ...] | None, layer: Layer) -> bool:
    """Returns whether a block is among the named ones; by default the second-to-last.

    Its output is what LLaVA-style models hand to their projector.
    """
    if layers is not None:
        return layer.index in layers
    return layer.index == max(layer.depth - 2, 0)
