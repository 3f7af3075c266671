"""Fixes weights that a model writes itself, where they settle at the same value for all inputs.

Centres that are computed from weights at each call, or a weight that is normalised in place, settle
at one value. A copy of the model that holds it gives the same outputs, and writes the same value
again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.module_state import evaluation
from tokexport.exporter.eager.outputs import Answer, same_answers

#: A weight that is normalised in place may take some calls to settle.
_CALLS = 3
#: How far it may still move, as a share of each number.
_SAME = 1e-6
#: How far an answer may be from the first one, as a share of the scale around each number.
_AGREE = 1e-5


def weights_of(model: FlatModel) -> Iterator[tuple[str, Tensor]]:
    """Yields the parameters and buffers of a model, by name."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def settle(
    model: FlatModel,
    written: Sequence[str],
    tensors: Sequence[Tensor],
    run: Callable[[Sequence[Tensor]], Answer],
) -> bool:
    """Replaces a model that writes weights by a copy with settled weights.

    The model as given is left as it was.

    Args:
        model: Takes and gives flat tensors.
        written: The weights that it writes.
        tensors: An input.
        run: Runs it.

    Returns:
        Whether they settle: two inputs leave the same numbers, which a further call leaves alone,
        and with these the model answers both as it did at its first call.
    """
    try:
        with evaluation(model, weights=True) as entered:
            answers, values = [], []
            for given in (other_inputs(tensors), tensors):
                entered.begin_again()
                answers.append(run(given))
                values.append(_values(model, written))
            if not _equal(*values):
                return False
            for _ in range(_CALLS):
                run(tensors)
            settled = _values(model, written)
            for given, answer in zip((other_inputs(tensors), tensors), answers, strict=True):
                if not same_answers(answer, run(given), _AGREE) or not _near(
                    settled, _values(model, written)
                ):
                    return False
        copied = copy.deepcopy(model.model)
    except Exception:  # it fails on the other input, or cannot be copied: it is refused as it is
        return False
    model.model = copied
    own = dict(weights_of(model))
    with torch.no_grad():
        for name, value in settled.items():
            own[name].data.copy_(value)
    model.settled |= frozenset(written)
    return True


def settled_warning(model: FlatModel) -> tuple[str, ...]:
    """Returns a warning that names the weights that were settled."""
    if not model.settled:
        return ()
    names = ", ".join(sorted(name.removeprefix("model.") for name in model.settled)[:8])
    return (
        f"The model writes {names} while it runs in eval mode, with the same numbers whatever the "
        "input: they are constants of the artifact.",
    )


def _near(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Returns whether weights are the same up to rounding."""
    return all(torch.allclose(v, other[n], rtol=_SAME, atol=0) for n, v in one.items())


def _values(model: FlatModel, names: Sequence[str]) -> dict[str, Tensor]:
    own = dict(weights_of(model))
    return {name: own[name].detach().clone() for name in names}


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def other_inputs(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns inputs that differ from some, of numbers that occur in them.

    Args:
        tensors: The inputs; theirs are shapes and types.
    """
    return [
        one.flip(tuple(range(one.dim()))) * (-0.5 if one.is_floating_point() else 1)
        for one in tensors
    ]
