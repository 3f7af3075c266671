"""What a refusal says is in the user's terms: no name that only torch's insides have."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tokexport
from tokexport.exporter.errors import ExporterError, ModelNotSupportedError
from tokexport.graph_passes.torch_errors import in_words

#: What stands in no message: classes of torch's tracer, its symbols, its schemas and its nodes.
INSIDES: Final = re.compile(
    r"FakeTensor|\bMeta tensors|SymInt|Unbacked|Dynamo|Exception\b|HigherOrder"
    r"|\b[su]\d+\b|\(Tensor |Declaration:|%\w+|\bfx\b|eval_with_key|torch/|exporter/|graph_passes/"
)


@torch.library.custom_op("refusals::shapeless", mutates_args=())
def shapeless(x: Tensor) -> Tensor:
    """An operator that does not say which shapes it gives."""
    return x.clone()


def on_condition(x: Tensor) -> Any:
    return torch.cond(x.sum() > 0, lambda y: y if y.sum() > 1 else -y, lambda y: -y, (x,))


REFUSED: Final[dict[str, tuple[Callable[[Tensor], Any], str]]] = {
    "a branch": (lambda x: x if x.sum() > 0 else -x, "depends on the values"),
    "a count": (lambda x: torch.combinations(x[0]), "depends on the values"),
    "a size": (lambda x: x[x > 0], "How many rows aten.index.Tensor gives"),
    "a loss": (
        lambda x: nn.functional.ctc_loss(
            x[:, None].log_softmax(-1),
            torch.ones(1, 1).long(),
            torch.tensor([2]),
            torch.ones(1).long(),
        ),
        "depends on the values",
    ),
    "an array": (lambda x: torch.from_numpy(np.sort(x.numpy())), "NumPy or another library"),
    "a text": (lambda x: x * float(f"{x.sum():.3f}"), "as a number or text of Python"),
    "a region": (on_condition, "torch.cond"),
    "a nest": (
        lambda x: torch.nested.nested_tensor([x[0], x[1]]).to_padded_tensor(0.0),
        "no rule for the operator aten._nested",
    ),
    "a sparse one": (lambda x: torch.sparse.mm(x.to_sparse(), x.T), "is a sparse coo tensor"),
    "an operator of one's own": (shapeless, "does not say which shapes it gives"),
    "no form": (lambda x: torch.linalg.svd(x)[1], "aten._linalg_svd.default has no ONNX form"),
    "a missing argument": (lambda x: torch.ops.aten.add.Tensor(x), "missing value for argument"),
    "shapes that do not fit": (lambda x: x @ x, "mat1 and mat2 shapes cannot be multiplied"),
    "wrong arguments": (lambda x: torch.gather(x, 1, x), "int64"),
}


class Calls(nn.Module):
    """Calls one of the functions, in a method below forward."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        """Returns what the function gives."""
        return self.function(x)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_has_no_word_of_torchs_insides_and_names_the_line(
    kind: str, tmp_path: Path
) -> None:
    function, words = REFUSED[kind]
    with pytest.raises(ModelNotSupportedError) as caught:
        tokexport.compile(
            Calls(function).eval(), torch.randn(2, 4), "ort", output=tmp_path / "bundle"
        )
    assert words in caught.value.what
    assert not INSIDES.search(caught.value.what), caught.value
    assert not INSIDES.search(caught.value.fix), caught.value
    assert f"At {__file__}:" in caught.value.where
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("expected FakeTensor(..., size=(u0, 2)) to fit", "expected a tensor (?, 2) to fit"),
        ("aten.foo.default(Tensor self, int dim) -> Tensor failed", "aten.foo.default"),
        ("size s27 is not 4.\nmore", "size ? is not 4"),
        ("aten::add() lacks 'other'. Declaration: aten::add(Tensor self)", "aten::add() lacks"),
        ("/src/aten/Register_0.cpp:131: must be positive", "must be positive"),
    ],
)
def test_insides_are_taken_out_of_what_is_not_known(raised: str, said: str) -> None:
    found = in_words(RuntimeError(raised))
    assert found.startswith(f"RuntimeError: {said}")
    assert not INSIDES.search(found)


def test_a_size_that_must_be_a_number_is_told_in_words() -> None:
    raised = "/src/Composite_0.cpp:1: SymIntArrayRef expected to contain only concrete integers."
    assert in_words(RuntimeError(raised)).startswith("it asks for sizes as numbers")


def test_what_the_models_code_raises_is_told_whole(tmp_path: Path) -> None:
    def refuses(_: Tensor) -> Tensor:
        raise ValueError("no such size:\nonly 8 and 16")

    with pytest.raises(ExporterError, match=r"ValueError: no such size:\nonly 8 and 16\."):
        tokexport.compile(Calls(refuses), torch.randn(2, 4), "ort", output=tmp_path / "bundle")
