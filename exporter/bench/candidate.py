"""Names the candidates of a benchmark, and holds what preparing each of them gave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Way(StrEnum):
    """Names how a candidate runs the model."""

    EAGER = "eager"
    TORCH_COMPILE = "torch.compile"
    PLAIN = "plain export"
    OPTIMIZER = "plain export, vit optimizer"
    OURS = "tokexport"
    FLOOR = "GEMM floor"


@dataclass(frozen=True)
class Candidate:
    """One row of the benchmark.

    Attributes:
        way: How the model is run.
        target: What runs it: ``ort`` or ``openvino``; '' for torch.
        precision: What it computes in.
        unreduced: Whether it runs the model without its token reduction.
    """

    way: Way
    target: str = ""
    precision: str = "fp32"
    unreduced: bool = False

    @property
    def name(self) -> str:
        """The name it goes by: ``unreduced: tokexport, ort fp32``."""
        where = f", {self.target} {self.precision}" if self.target else ""
        return f"{'unreduced: ' * self.unreduced}{self.way}{where}"

    def same(self, way: Way, precision: str, *, unreduced: bool = False) -> Candidate:
        """Returns the candidate that runs the model on the same target in another way."""
        return Candidate(way, self.target, precision, unreduced)


@dataclass(frozen=True)
class Entrant:
    """A candidate that was prepared, or why it could not be.

    Attributes:
        candidate: What it is.
        run: Runs it once on the first batch; None where it cannot run.
        error: The largest difference of an output from eager, as a share of the output's scale, as
            a table shows it; None where nothing was compared.
        wrong: Whether a value lies outside what its neighbourhood allows.
        note: What the user should know of it; where it cannot run, why.
        threads: How many it runs on; None where its runtime does not say.
    """

    candidate: Candidate
    run: Callable[[], object] | None = None
    error: float | None = None
    wrong: bool = False
    note: str = ""
    threads: int | None = None
