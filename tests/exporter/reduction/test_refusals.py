"""What cannot be reduced is refused with the reason, and a wrong recipe with what there is."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

import pytest
import torch
from models.plain_vits import DEEPER, build, image
from torch import Tensor, nn

import tokexport
from tokexport.exporter.errors import (
    ExporterError,
    GateError,
    ModelNotSupportedError,
    NotRepeatableError,
    UsageError,
)
from tokexport.exporter.recipe import parse_recipe
from tokexport.graph_passes.reduction.errors import SurgeryError


def _timm(name: str, **options: object) -> nn.Module:
    import timm

    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, pretrained=False, **options)
    return model.eval()


def test_relative_positions_are_refused() -> None:
    model = _timm("beit_base_patch16_224", img_size=48, embed_dim=48, num_heads=3, depth=2)
    with pytest.raises(SurgeryError, match="bias or a mask between pairs of tokens") as error:
        tokexport.reduce(model, "tome", torch.zeros(1, 3, 48, 48))
    assert "absolute or rotary positions" in error.value.fix


def test_windows_are_refused() -> None:
    model = _timm("swin_tiny_patch4_window7_224", embed_dim=24, depths=(2, 2), num_heads=(1, 2))
    with pytest.raises(ModelNotSupportedError, match="no repeated blocks"):
        tokexport.reduce(model, "tome", torch.zeros(1, 3, 224, 224))


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("tom:r=8", r"no method 'tom'.*Take one of tome, mctf"),
        ("tome:k=8", r"no option 'k'.*It has layers, r, inflection, prop_attn"),
        ("tome:r=many", r"'r' of the recipe is \"many\".*whole number or a list"),
        ("tome:r=-1", r"r is -1"),
        ("tome:r", r"'r' in the recipe has no value"),
        ("tome:r=1,r=2", r"'r' is twice"),
        ("tome:r=[1,2]", r"holds 2 numbers, and the model has 4 blocks"),
        ("tome:layers=[9]", r"layers is \[9\].*0 to 3"),
        ("tome:protect=99", r"protect=99 leaves no token"),
        ("tome:blocks=encoder", r"no module 'encoder'"),
        ("tome:restore=[7]", r"restore is \[7\]"),
        ("tome:weights=w.pt", r"no trained parameters"),
        ("evit:keep=1.5", r"keep is 1.5"),
        ("diffrate", r"needs its learned schedule"),
        ("missing.toml", r"recipe does not exist"),
    ],
)
def test_a_wrong_recipe_is_told_what_there_is(recipe: str, said: str) -> None:
    model, x = build("timm DeiT", depth=DEEPER), image()
    with pytest.raises((ExporterError, SurgeryError)) as error:
        tokexport.reduce(model, recipe, x)(x)
    assert re.search(said, str(error.value), re.DOTALL), str(error.value)


def test_a_method_of_the_class_token_needs_one() -> None:
    with pytest.raises(SurgeryError, match="reads the attention of a class token"):
        tokexport.reduce(build("timm SigLIP"), "evit", image())


def test_blocks_can_be_named() -> None:
    model, x = build("timm DeiT"), image()
    named = tokexport.reduce(model, "tome:r=4,blocks=blocks", x)
    with torch.no_grad():
        assert torch.equal(named(x), tokexport.reduce(model, "tome:r=4", x)(x))


class _TwoTrunks(nn.Module):
    """Two rows of blocks, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = build("timm DeiT", 1), build("timm DeiT", 2)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sum of both trunks' logits."""
        result: Tensor = self.one(x) + self.two(x)
        return result


def test_several_rows_of_blocks_want_a_name() -> None:
    model, x = _TwoTrunks().eval(), image()
    with pytest.raises(UsageError, match=r"several rows of blocks: one\.blocks, two\.blocks"):
        tokexport.reduce(model, "tome", x)
    reduced = tokexport.reduce(model, "tome:r=4,blocks=two.blocks", x)
    with torch.no_grad():
        wanted = model.one(x) + tokexport.reduce(model.two, "tome:r=4", x)(x)
        torch.testing.assert_close(reduced(x), wanted, rtol=0.0, atol=1e-6)


class _TwoFaced(nn.Module):
    """A block that answers otherwise while it is traced, or every time."""

    def __init__(self, block: nn.Module, tie_free: bool) -> None:
        super().__init__()
        self.block, self.tie_free, self.runs = block, tie_free, itertools.count()

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns (B, N, C)."""
        by = float(torch.compiler.is_exporting()) if self.tie_free else next(self.runs)
        result: Tensor = self.block(x) + by * torch.linspace(0.0, 0.1, x.shape[-1])
        return result


def _two_faced(tie_free: bool) -> nn.Module:
    model = build("timm DeiT")
    blocks = [_TwoFaced(block, tie_free) for block in model.blocks]  # type: ignore[union-attr,operator]
    model.blocks = nn.Sequential(*blocks)
    return model


def test_a_surgery_that_changes_the_answer_fails_its_gate() -> None:
    with pytest.raises(GateError, match="nothing reduced, give other outputs"):
        tokexport.reduce(_two_faced(tie_free=True), "tome", image())


class _Masked(nn.Module):
    """Puts masked scores, or one loud score, beside those of a model."""

    def __init__(self, model: nn.Module, loud: float) -> None:
        super().__init__()
        self.model, self.loud = model, loud

    def forward(self, x: Tensor) -> Tensor:
        scores = self.model(x)
        return torch.cat([scores, scores.new_full((len(scores), 2), self.loud)], dim=1)


@pytest.mark.parametrize("loud", [torch.finfo(torch.float32).min, 1e8])
def test_nothing_loud_beside_it_hides_what_a_surgery_changes(loud: float) -> None:
    with pytest.raises(GateError, match="nothing reduced, give other outputs"):
        tokexport.reduce(_Masked(_two_faced(tie_free=True), loud).eval(), "tome", image())


def test_a_model_without_one_answer_is_told_so() -> None:
    with pytest.raises(NotRepeatableError, match="other outputs when it runs again"):
        tokexport.reduce(_two_faced(tie_free=False), "tome", image())


def test_a_recipe_comes_from_a_file(tmp_path: Path) -> None:
    toml, json = tmp_path / "recipe.toml", tmp_path / "recipe.json"
    toml.write_text('method = "mctf"\nr = [0, 5, 3, 2]\nleast = 4\n')
    json.write_text('{"method": "mctf", "r": [0, 5, 3, 2], "least": 4}')
    model, x = build("timm DeiT", depth=DEEPER), image()
    marked = tmp_path / "marked.TOML"
    marked.write_text(toml.read_text(), encoding="utf-8-sig")
    with torch.no_grad():
        wanted = tokexport.reduce(model, "mctf:r=[0,5,3,2],least=4", x)(x)
        for file in (toml, json, marked):
            assert torch.equal(tokexport.reduce(model, file, x)(x), wanted)
    json.write_text('{"method": "tome", "r": 3, "r": 4}')
    with pytest.raises(UsageError, match="the key 'r' stands twice"):
        tokexport.reduce(model, json, x)
    toml.write_text("r = 3\n")
    with pytest.raises(UsageError, match="names no method"):
        tokexport.reduce(model, toml, x)


def test_brackets_without_end_are_no_recipe(tmp_path: Path) -> None:
    for name, start in (("deep.json", '{"method": '), ("deep.toml", "method = ")):
        (tmp_path / name).write_text(start + "[" * 100_000)
        with pytest.raises(UsageError, match="The recipe cannot be read"):
            parse_recipe(tmp_path / name)
    with pytest.raises(UsageError, match="Option 'r' of the recipe"):
        parse_recipe("tome:r=" + "[" * 100_000)


def test_an_option_may_be_a_file(tmp_path: Path) -> None:
    schedule = tmp_path / "schedule.json"
    schedule.write_text('{"prune": [37, 17, 15, 13], "merge": [37, 16, 14, 12]}')
    recipe = parse_recipe(f"diffrate:schedule={schedule}")
    assert recipe.method.name == "diffrate"
    assert recipe.given == {"schedule": str(schedule)}


@pytest.mark.parametrize(
    "text",
    [
        f"evit:keep={'9' * 400}",
        f"tome:r={'9' * 30}",
        f"tome:r={'[' * 900}1{']' * 900}",
        "tome:layers=[1e999]",
    ],
)
def test_numbers_that_count_nothing_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_recipe(text)
    assert len(error.value.what) < 200


def test_a_recipe_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "recipe.toml")
    (tmp_path / "recipe.json").symlink_to("/dev/zero")
    (tmp_path / "long.toml").write_text(f"a{'.a' * 20_000} = 1")
    for name in ("recipe.toml", "recipe.json", "long.toml"):
        with pytest.raises(UsageError, match="The recipe cannot be read"):
            parse_recipe(tmp_path / name)
    with pytest.raises(UsageError, match="cannot be read: OSError: it is no file"):
        parse_recipe(f"diffrate:schedule={tmp_path / 'recipe.toml'}")
