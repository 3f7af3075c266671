"""A sample of ``ci/proof_mutations.py``: faults in every stage are caught and blamed rightly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.planting.holding import BLAMED, CAUGHT, SILENT, hold
from helpers.planting.plants import How, Plant
from helpers.planting.ways import Way
from helpers.thorough import thorough_but
from models.detectors import masked_detector
from models.named_inputs import pixels_and_words, sample
from models.zoo import MODELS
from torch import Tensor, nn

import tokexport
from tokexport.exporter.parity.proof import ParityError

ONE_MORE: How = {"change": "times", "axis": 2, "at": 3, "factor": 1.01}
TURNED: How = {"change": "take", "axis": 1, "index": [1, 2, 0]}

#: By model: the stage, the node, what is done there.
FAULTS: dict[str, list[tuple[str, str, How]]] = {
    "tome": [
        ("captured", "softmax", {"change": "bf16"}),
        ("rewritten", "getitem_1", TURNED),
        ("emitted", "linear_4", {"change": "bf16"}),
        ("lowered for openvino", "layer_norm_2", ONE_MORE),
        ("kernels of openvino", "call 0", {"change": "kernel", "attribute": "b_start"}),
        ("built for ort", "output", {"change": "times", "factor": 1.001}),
    ],
    "masked detector": [
        ("captured", "masked_fill_1", {"change": "argument", "place": 2, "value": -1e4}),
        ("rewritten", "gelu", {"change": "argument", "place": "approximate", "value": "tanh"}),
        # beside scores that a mask fills with -1e4, which must not make the others' errors small
        ("rewritten", "select", {"change": "times", "axis": 1, "at": 0, "factor": 1.1}),
        ("emitted", "gt", {"change": "not"}),
        # the padding is filled with one number, and sorted stably
        ("emitted", "sort_stable__0", {"change": "ties"}),
        ("lowered for openvino", "boxes", {"change": "take", "axis": 2, "index": [1, 0, 2, 3]}),
        ("built for openvino", "layer_norm", ONE_MORE),
        ("built for ort", "features", {"change": "times", "axis": 2, "at": 7, "factor": 1.01}),
    ],
    "pixels and words": [
        ("captured", "tensors_2", {"change": "inputs", "other": "tensors_3"}),
        ("emitted", "attention_mask", {"change": "inputs", "other": "token_type_ids"}),
    ],
}
#: All of them, by model.
PLANTED = [(model, *fault) for model, faults in FAULTS.items() for fault in faults]
#: Of each model, those of another stage or of another change than what stands before them.
FIRST: set[tuple[str, str]] = {
    *(("tome", node) for node in ("getitem_1", "layer_norm_2", "call 0", "output")),
    *(("masked detector", node) for node in ("masked_fill_1", "select", "gt", "sort_stable__0")),
    ("pixels and words", "tensors_2"),
}


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Way]:
    """Goes each model's way once."""
    made: dict[str, Way] = {}

    def of(name: str) -> Way:
        if name not in made:
            model, example = {
                "tome": lambda: MODELS["tome"](0),
                "masked detector": lambda: masked_detector(2),
                "pixels and words": lambda: (pixels_and_words(), sample(2, 0)),
            }[name]()
            made[name] = Way(model, example, tmp_path_factory.mktemp("way"))
        return made[name]

    return of


@pytest.mark.parametrize(
    ("model", "stage", "node", "how"),
    thorough_but([fault for fault in PLANTED if (fault[0], fault[2]) in FIRST], PLANTED),
)
def test_a_fault_is_blamed_on_its_stage(
    model: str, stage: str, node: str, how: How, way: Callable[[str], Way]
) -> None:
    outcome = hold(way(model), Plant(model, stage, node, "", how))
    assert outcome.result == CAUGHT, outcome
    assert outcome.at in BLAMED[stage]


def test_what_does_nothing_is_an_equivalent(way: Callable[[str], Way]) -> None:
    how: How = {"change": "times", "factor": 1.0}
    outcome = hold(way("tome"), Plant("tome", "rewritten", "linear", "", how))
    assert outcome.result == SILENT
    assert outcome.equivalent
    assert outcome.effect == 0


class CutsWhatIsTraced(nn.Module):
    """Answers otherwise while it is traced, where its input is larger than any sample."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Takes x (B, 6)."""
        y: Tensor = self.layer(x)
        return y.clamp(-20, 20) if torch.compiler.is_compiling() else y


def test_a_fault_of_the_trace_that_only_the_edges_show(tmp_path: Path) -> None:
    """Its float64 run is off by as much as the fault, and must not widen the gate of the edges."""
    with pytest.raises(ParityError, match="Parity failed at 'captured'.*on large values"):
        tokexport.compile(CutsWhatIsTraced(), torch.zeros(2, 6), output=tmp_path / "out")


class ScalesWhatIsTraced(CutsWhatIsTraced):
    """Answers otherwise while it is traced, whatever its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Takes x (B, 6)."""
        y: Tensor = self.layer(x)
        return -y if torch.compiler.is_compiling() else y


def test_a_fault_of_the_trace_is_not_called_rounding(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="Parity failed at 'captured'"):
        tokexport.compile(ScalesWhatIsTraced(), torch.zeros(2, 6), output=tmp_path / "out")
