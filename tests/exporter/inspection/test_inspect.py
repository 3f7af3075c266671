"""What an inspection finds in models whose blocks, tokens and costs are known beforehand."""

from __future__ import annotations

import copy
import io
import json
import sys
from typing import Any

import pytest
import timm
import torch
from models.outputs import Returns
from models.plain_vits import build
from models.plain_vits import image as plain_image
from models.tiny_vit import image, tiny_tome
from models.zoo import MODELS
from models.zoo.vit import Block, Vit, images, seeded
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

import tokexport
from tokexport.exporter.errors import ModelNotSupportedError, UsageError
from tokexport.exporter.inspection.inspect import Inspection, inspect
from tokexport.exporter.inspection.tables import render_inspection
from tokexport.exporter.report.block_parts import Part
from tokexport.runtimes.native_library import VARIABLE

MERGING = {"bipartite_match": 1, "merge_tokens": 2, "sized_attention": 1}


def look(model: nn.Module, *inputs: Tensor, targets: tuple[str, ...] = ()) -> Inspection:
    return inspect(model, inputs, targets=targets)


def tokens(found: Inspection) -> list[tuple[int | None, int | None]]:
    return [(part.tokens_in, part.tokens_out) for part in found.blocks]


def printed(found: Inspection, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    render_inspection(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def linear_macs(n: int, at_mlp: int, width: int, hidden: int) -> int:
    """The four projections of an attention and the two layers of an MLP."""
    return 4 * n * width**2 + 2 * at_mlp * width * hidden


def test_a_timm_vit_that_merges() -> None:
    found = look(tiny_tome(r=3, depth=3), image())
    assert [part.path for part in found.blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    assert tokens(found) == [(37, 34), (34, 31), (31, 28)]
    assert found.token_schedule == (37, 34, 31)
    assert [part.recognised for part in found.blocks] == [MERGING] * 3
    assert found.outside.recognised == {}
    assert all(part.generic == () for part in (*found.blocks, found.outside))
    for part, (n, m) in zip(found.blocks, [(37, 34), (34, 31), (31, 28)], strict=True):
        even, odd = (n + 1) // 2, n // 2
        assert part.macs == {
            "linear": linear_macs(n, m, 48, 4 * 48),
            "convolution": 0,
            "attention": 2 * n * n * 48,
            "matching": even * odd * 16,
            "normalisation": 5 * 48 * (n + m),
            "other": 0,
        }
    assert found.outside.macs["convolution"] == 36 * 48 * 3 * 8 * 8
    assert found.outside.macs["linear"] == 48 * 10


def test_the_whole_is_the_sum_and_is_compared_with_the_unreduced_model() -> None:
    reduced, whole = look(tiny_tome(r=3), image()), look(tiny_tome(r=0), image())
    for kind, count in reduced.macs.items():
        parts = (*reduced.blocks, reduced.outside)
        assert count == sum(part.macs[kind] for part in parts), kind
    assert reduced.unreduced == whole.macs == whole.unreduced
    assert sum(reduced.macs.values()) < sum(whole.macs.values())


def test_columns_that_nothing_reads_cost_nothing() -> None:
    plain = build("timm DeiT")
    found = look(tokexport.reduce(plain, "mctf:r=4", x := plain_image()), x)
    whole = look(plain, x)
    assert found.unreduced["linear"] == whole.macs["linear"]
    assert sum(found.macs.values()) < sum(whole.macs.values())


def test_a_batch_multiplies_the_cost_and_not_the_tokens() -> None:
    one, three = look(tiny_tome(), image(1)), look(tiny_tome(), image(3))
    assert (one.batch, three.batch) == (1, 3)
    assert tokens(one) == tokens(three)
    assert three.macs == {kind: 3 * count for kind, count in one.macs.items()}
    assert three.unreduced == {kind: 3 * count for kind, count in one.unreduced.items()}


def test_a_transformers_vit() -> None:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=16,
        patch_size=4,
    )
    found = look(ViTForImageClassification(config).eval(), torch.zeros(1, 3, 16, 16))
    assert len(found.blocks) == 2
    assert [part.path.rpartition(".")[2] for part in found.blocks] == ["0", "1"]
    assert tokens(found) == [(17, 17)] * 2
    assert [part.macs["linear"] for part in found.blocks] == [linear_macs(17, 17, 16, 24)] * 2
    assert [part.recognised for part in found.blocks] == [{"sized_attention": 1}] * 2
    assert found.macs == found.unreduced
    assert list(found.inputs) == ["pixel_values"]


def test_a_hierarchical_timm_model_has_its_blocks_in_stages() -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=4,
        embed_dim=8,
        depths=(1, 2),
        num_heads=(1, 2),
    ).eval()
    found = look(model, torch.zeros(1, 3, 32, 32))
    paths = [part.path for part in found.blocks]
    assert [path.startswith("layers.") for path in paths] == [True] * 3
    assert tokens(found) == [(64, 16), (16, 16), (16, 16)]
    assert found.macs == found.unreduced


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("evit, fused token", [(37, 37), (37, 28), (28, 28), (28, 21)]),
        ("dct", [(37, 37), (37, 30), (30, 30), (30, 25)]),
        ("fixed positions", [(37, 25), (25, 25), (25, 13), (13, 13)]),
    ],
)
def test_tokens_of_other_methods(name: str, schedule: list[tuple[int, int]]) -> None:
    assert tokens(look(*MODELS[name](0))) == schedule


class ReadsItsProbabilities(Block):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn.heads(self.norm1(x))
        seen = (q @ k.mT).softmax(dim=-1)
        best = seen.mean((1, 2)).topk(9, dim=1).indices
        flat = (best + torch.arange(len(x))[:, None]).flatten()
        x = x + self.attn.join(seen @ v)  # attended here
        return x.flatten(0, 1)[flat].unflatten(0, (-1, 9))  # taken here


def test_what_stays_generic_is_told_with_its_line() -> None:
    model = seeded(0)
    model.blocks[2].__class__ = ReadsItsProbabilities
    found = look(model, images())
    assert [len(part.generic) for part in found.blocks] == [0, 0, 2, 0]
    attention, gather = found.blocks[2].generic
    assert (attention.what, attention.operator) == ("attention", "aten.matmul")
    assert "its probabilities are read by aten.mean too" in attention.why
    assert attention.line.endswith("# attended here")
    assert (gather.what, gather.operator) == ("gather", "aten.index")
    assert gather.line.endswith("# taken here")
    assert __file__ in gather.line
    shown = printed(found)
    assert "gather aten.index in blocks.2: it counts along axis 0" in shown
    assert attention.line in shown


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        return result


def test_a_model_without_blocks() -> None:
    found = look(Plain(), torch.zeros(2, 6))
    assert found.blocks == ()
    assert found.outside == Part(
        path="",
        tokens_in=None,
        tokens_out=None,
        macs={kind: 60 if kind == "linear" else 0 for kind in found.macs},
        recognised={},
        generic=(),
    )
    assert found.macs == found.unreduced == found.outside.macs
    shown = printed(found)
    assert "the whole  60 MACs" in shown
    assert "unreduced" not in shown


def test_a_model_without_any_cost() -> None:
    found = look(nn.ReLU(), torch.zeros(2, 6))
    assert sum(found.macs.values()) == 0
    assert "the whole  0 MACs" in printed(found)


def test_a_model_with_one_block() -> None:
    found = look(seeded(0, depth=1), images(1))
    assert [part.path for part in found.blocks] == ["blocks.0"]
    assert tokens(found) == [(37, 37)]
    assert found.blocks[0].macs["linear"] == linear_macs(37, 37, 48, 96)


@pytest.mark.parametrize("form", ["tuple", "list", "dict", "dataclass", "named", "same twice"])
def test_outputs_of_any_form(form: str) -> None:
    found = look(Returns(form), torch.zeros(2, 6), targets=("ort",))
    assert found.macs["linear"] == 2 * 6 * 5
    assert found.targets[0].refusals == ()


class Tower(Vit):
    def forward(self, x: Tensor) -> Any:
        tokens = self.forward_features(x)
        return self.head(tokens[:, 0]), {"tokens": tokens, "count": tokens.shape[1]}


def test_a_tuple_of_nested_outputs() -> None:
    found = look(Tower().eval(), images(1), targets=("ort",))
    assert len(found.blocks) == 4
    assert found.targets[0].refusals == ()


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_tome().train()
    info, state = model._tome_info, copy.deepcopy(model.state_dict())
    contents = dict(info)
    look(model, image(), targets=("ort", "openvino", "trt"))
    assert all(module.training for module in model.modules())
    assert model._tome_info is info
    assert info == contents
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not [name for name, value in vars(model).items() if "Fake" in type(value).__name__]


# The targets.


class Sorts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        return x.long().sort(1).values  # sorted here


class Bends(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)  # bent here


class Determines(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.det(x) + torch.linalg.det(x * 2)  # taken here


def test_every_target_is_asked_and_takes_a_vit() -> None:
    found = look(tiny_tome(), image(), targets=("ort", "openvino", "trt"))
    assert [verdict.target for verdict in found.targets] == ["ort", "openvino", "trt"]
    assert all(verdict.asked and not verdict.refusals for verdict in found.targets)
    ort, openvino_, trt = (verdict.note for verdict in found.targets)
    assert ort.startswith("onnxruntime")
    assert openvino_.startswith("openvino")
    assert "nothing was built" in trt
    assert all(note.endswith("2 of 2 attentions fused") for note in (ort, openvino_))
    assert not any(verdict.unfused for verdict in found.targets)


class TellsWeights(nn.Module):
    """Two attentions, one of which gives its weights away, too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.scaled_dot_product_attention(x, x, x)
        weights = (x @ x.mT * 0.25).softmax(-1)  # weighed here
        return weights @ x, weights


@pytest.mark.parametrize("target", ["ort", "openvino"])
def test_an_attention_that_is_not_fused_is_told_with_its_line(target: str) -> None:
    found = look(TellsWeights(), torch.randn(1, 2, 40, 16), targets=(target,))
    (verdict,) = found.targets
    assert verdict.note.endswith("1 of 2 attentions fused")
    (place,) = verdict.unfused
    assert place.endswith("# weighed here")
    assert "This attention is not fused: some of it runs in standard operators." in printed(found)


class ReadsARow(nn.Module):
    """Its weights are one kernel; a row of them is multiplied with the values apart."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = x.view(1, 9, 3, 2, 8).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * 0.25).softmax(-1)
        return weights[:, :, :1] @ v, weights.mean((1, 2))


def test_a_row_of_attention_that_is_multiplied_apart_is_told() -> None:
    (verdict,) = look(ReadsARow(), torch.randn(1, 9, 48), targets=("ort",)).targets
    assert verdict.note.endswith("0 of 1 attentions fused")
    (place,) = verdict.unfused
    assert "(attention_weights)" in place


def test_without_kernels_no_attention_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    (verdict,) = look(tiny_tome(), image(), targets=("ort",)).targets
    assert verdict.note.endswith("0 of 2 attentions fused")
    assert len(verdict.unfused) == 2


def test_a_sort_of_whole_numbers_is_refused_by_trt_with_its_line() -> None:
    found = look(Sorts(), torch.zeros(1, 4, 6), targets=("ort", "trt"))
    ort, trt = found.targets
    assert ort.refusals == ()
    assert len(trt.refusals) == 1
    (refusal,) = trt.refusals
    assert "top-k of integers" in refusal.what
    assert refusal.where.endswith("# sorted here")
    assert refusal.fix
    shown = printed(found)
    assert "trt      refuses" in shown
    assert "# sorted here" in shown


def test_every_place_that_openvino_refuses_is_told() -> None:
    (verdict,) = look(Determines(), torch.zeros(2, 3, 3), targets=("openvino",)).targets
    assert len(verdict.refusals) == 2
    for refusal in verdict.refusals:
        assert "Det" in refusal.what
        assert refusal.where.endswith("# taken here")


def test_what_has_no_onnx_form_is_refused_by_all() -> None:
    found = look(Bends(), torch.zeros(1, 4), targets=("ort", "openvino", "trt"))
    for verdict in found.targets:
        (refusal,) = verdict.refusals
        assert "bessel" in refusal.what
        assert "# bent here" in refusal.where


def test_a_target_whose_runtime_is_missing_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    found = look(Plain(), torch.zeros(2, 6), targets=("openvino",))
    (verdict,) = found.targets
    assert not verdict.asked
    assert verdict.refusals == ()
    assert "pip install" in verdict.note
    assert "openvino not asked" in printed(found)


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(UsageError, match="There is no target 'coreml'"):
        look(Plain(), torch.zeros(2, 6), targets=("coreml",))


def test_a_model_that_cannot_be_traced_is_refused_with_its_line() -> None:
    class Leaves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(x.numpy() / 2)  # left here

    with pytest.raises(ModelNotSupportedError) as caught:
        look(Leaves(), torch.zeros(2, 6))
    assert "left here" in caught.value.where


# The prints and the JSON.


def test_json_holds_all_of_it() -> None:
    found = look(tiny_tome(), image(), targets=("ort",))
    data = json.loads(json.dumps(found.to_json()))
    assert data["schema_version"] == 2
    assert [block["path"] for block in data["blocks"]] == ["blocks.0", "blocks.1"]
    assert data["blocks"][0]["recognised"] == MERGING
    assert data["macs"] == found.macs
    assert data["unreduced"] == found.unreduced
    assert "matching" in data["unreduced_means"]
    assert data["targets"][0]["target"] == "ort"
    assert data["inputs"] == {"x": [1, 3, 48, 48]}
    rewriting = {one["name"]: one["fired"] for one in data["passes"]}
    assert rewriting["recognise matches"] == rewriting["recognise merges"] // 2 == 2
    (ort,) = data["targets"]
    lowering = {one["name"]: one for one in ort["passes"]}
    matches = [lowering[name]["fired"] for name in ("match by cosine", "cosine merge norm")]
    assert matches == [1, 1]  # one kernel for all that the last layer does with them
    assert lowering["merge by size"]["non_matches"] == []


def test_what_the_passes_did_is_printed() -> None:
    found = look(tiny_tome(), image(), targets=("ort", "trt"))
    shown = printed(found).splitlines()
    table = shown[shown.index("Passes that fired, or left what they are for") + 2 :]
    assert ["rewrite", "recognise", "matches", "2"] in [line.split() for line in table]
    assert ["ort", "match", "by", "cosine", "1"] in [line.split() for line in table]
    assert not any("scored match" in line for line in table)  # it changed nothing


@pytest.mark.parametrize("width", [20, 80, 200])
def test_no_number_is_cut_whatever_the_width(width: int) -> None:
    found = look(tiny_tome(r=3), image())
    shown = printed(found, width)
    assert "…" not in shown
    rows = [line for line in shown.splitlines() if line.startswith("blocks.")]
    assert len(rows) == 2
    for row, part in zip(rows, found.blocks, strict=True):
        assert f"{part.tokens_in} → {part.tokens_out}" in row
        shown_total = sum(part.macs.values()) - part.macs["normalisation"]
        assert f"{shown_total / 1e6:.3f} M" in row
    for name, count in MERGING.items():
        assert shown.count(f"{name} × {count}") == 2


def test_the_same_reason_in_several_blocks_is_printed_once() -> None:
    model = seeded(0)
    for block in model.blocks:
        block.__class__ = ReadsItsProbabilities
    found = look(model, images(2))
    assert sum(len(part.generic) for part in found.blocks) == 8
    shown = printed(found)
    assert shown.count("over all images at once") == 1
    assert "in blocks.0 … blocks.3 (4): " in shown
