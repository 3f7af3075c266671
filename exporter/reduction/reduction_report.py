"""Reports a reduction and its cost, without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from tokexport.exporter.inputs.batches import Batches
from tokexport.exporter.parity.hits import accuracy
from tokexport.exporter.reduction.agreement import Agreement, agreements
from tokexport.runtimes.arrays import Array


class BundledReduction(TypedDict):
    """The token reduction of a bundle.

    Attributes:
        recipe: What was asked for, in one line.
        method: The method's name.
        options: All its options, those left at their defaults too.
        blocks: The names of the blocks it went into.
        special_tokens: How many tokens at the front are no patches.
        tokens: Tokens of an image that enter the first block, and that leave each.
    """

    recipe: str
    method: str
    options: dict[str, Any]
    blocks: list[str]
    special_tokens: int
    tokens: list[int]


@dataclass(frozen=True)
class ReductionReport:
    """A reduction that was put into a model.

    Attributes:
        recipe: What was asked for, in one line.
        method: The method's name.
        options: All its options, those left at their defaults too.
        blocks: The names of the blocks it went into.
        special_tokens: How many tokens at the front are no patches.
        surgery_error: How far the model with nothing reduced is from the given one, as a share of
            the scale around each value.
        tokens: Tokens of an image that enter the first block, and that leave each.
        warnings: Which outputs have fewer tokens, a sentence each.
        agreement: By output, with the model without the reduction; None for an output that is not
            floating, or of another shape than it was.
        accuracy_unreduced: The share of labelled samples that the model without the reduction
            classifies right, 0 to 1; None without labels.
        accuracy_reduced: The same of the reduced model.
    """

    recipe: str
    method: str
    options: Mapping[str, Any]
    blocks: tuple[str, ...]
    special_tokens: int
    surgery_error: float
    tokens: tuple[int, ...]
    warnings: tuple[str, ...] = ()
    agreement: Mapping[str, Agreement | None] = field(default_factory=dict)
    accuracy_unreduced: float | None = None
    accuracy_reduced: float | None = None

    def for_manifest(self) -> BundledReduction:
        """Returns the fields that a bundle keeps: those of the model, not the measurements."""
        return {
            "recipe": self.recipe,
            "method": self.method,
            "options": dict(self.options),
            "blocks": list(self.blocks),
            "special_tokens": self.special_tokens,
            "tokens": list(self.tokens),
        }

    def compared(
        self, unreduced: Mapping[str, Array], reduced: Mapping[str, Array], batches: Batches
    ) -> ReductionReport:
        """Returns the same with its agreement and, where there are labels, both accuracies.

        Args:
            unreduced: The outputs (batches, …) of the model as given, by name.
            reduced: Those of the reduced model.
            batches: What both ran on.
        """
        found = dataclasses.replace(self, agreement=agreements(unreduced, reduced, batches))
        if batches.labels is None:
            return found
        before, after = (next(iter(outputs.values())) for outputs in (unreduced, reduced))
        return dataclasses.replace(
            found,
            accuracy_unreduced=accuracy(before, batches.labels),
            accuracy_reduced=accuracy(after, batches.labels),
        )

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yields the rows of the summary, a name and a text each."""
        container = self.blocks[0].rpartition(".")[0] if self.blocks else ""
        yield (
            "reduction",
            f"{self.recipe} in the {len(self.blocks)} blocks of '{container}', "
            f"{self.special_tokens} special token{'s' * (self.special_tokens != 1)}",
        )
        first, *behind = self.tokens
        yield "layers", f"{first} → {' '.join(map(str, behind))} tokens behind each block"
        yield (
            "surgery",
            f"with nothing reduced off by {self.surgery_error:.1e} of the scale around a value",
        )
        for name, found in self.agreement.items():
            yield "agreement", f"{name}: {_said(found)}"
        if self.accuracy_unreduced is not None and self.accuracy_reduced is not None:
            yield (
                "reduced",
                f"accuracy {self.accuracy_unreduced:.2%} without the reduction, "
                f"{self.accuracy_reduced:.2%} with it",
            )


def _said(found: Agreement | None) -> str:
    if found is None:
        return "cannot be compared with the unreduced model's"
    top1 = "" if found.top1 is None else f"top-1 {found.top1:.1%}, "
    kl = "" if found.kl is None else f", KL {found.kl:.2e}"
    return f"{top1}cosine {found.cosine:.4f}{kl} with the unreduced model"
