"""Plain ViTs that people write themselves: what is reduced is what runs, or it is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models.plain_vits import build, image
from models.zoo.vit import IMAGE, Block, Vit, seeded
from torch import Tensor, nn

import tokexport
from tokexport.exporter.errors import ExporterError, UsageError
from tokexport.graph_passes.reduction.errors import SurgeryError


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(0))


def with_blocks(change: Callable[[Block], None]) -> Vit:
    """A ViT each of whose blocks is changed."""
    model = seeded(0)
    for block in model.blocks:
        assert isinstance(block, Block)
        change(block)
    return model


class _Positions(Block):
    """Adds positions counted inside the block."""

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1])[:, None] * torch.linspace(0.1, 1.0, x.shape[2])
        result: Tensor = super().forward(x + 0.3 * positions.sin())
        return result


class _Shift(Block):
    """Mixes each token with its neighbour."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = super().forward(x + 0.3 * x.roll(1, dims=1))
        return result


@pytest.mark.parametrize("kind", [_Positions, _Shift])
def test_blocks_that_know_where_a_token_stands_are_refused(kind: type[Block]) -> None:
    def change(block: Block) -> None:
        block.__class__ = kind

    with pytest.raises(SurgeryError, match="uses the indices of its tokens"):
        tokexport.reduce(with_blocks(change), "tome:r=4", images())


class _Turned(Vit):
    """Turns the patches round between two blocks."""

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number == 1:
                x = torch.cat([x[:, :1], x[:, 1:].flip(1)], dim=1)
        return self.norm(x)


def test_tokens_that_the_model_itself_moves_are_refused() -> None:
    model = seeded(0)
    model.__class__ = _Turned
    with pytest.raises(SurgeryError, match="in its blocks or between them"):
        tokexport.reduce(model, "tome:r=4", images())


class _Twice(Vit):
    """Registers its blocks twice, and runs them by the second name."""

    def forward(self, x: Tensor) -> Any:
        return self.head(self.norm(self.body(self.embed(x)))[:, 0])


def test_blocks_that_are_registered_twice_are_reduced() -> None:
    model = seeded(0)
    plain = tokexport.reduce(model, "tome:r=4", images())
    model.body = nn.Sequential(*model.blocks)
    model.__class__ = _Twice
    with torch.no_grad():
        found, wanted = tokexport.reduce(model, "tome:r=4", images())(images()), plain(images())
    assert torch.equal(found, wanted)


class _Listed(Vit):
    """Runs its blocks from a plain list made beforehand."""

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        for block in self.listed:  # type: ignore[union-attr]
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def test_blocks_of_a_plain_list_are_no_silent_loss() -> None:
    model = seeded(0)
    model.__dict__["listed"] = list(model.blocks)
    model.__class__ = _Listed
    with pytest.raises(SurgeryError, match="reaches them by another path"):
        tokexport.reduce(model, "tome:r=4", images())


def test_a_forward_set_on_the_block_is_reduced_too() -> None:
    def change(block: Block) -> None:
        block.forward = block.forward  # type: ignore[method-assign]

    with torch.no_grad():
        found = tokexport.reduce(with_blocks(change), "tome:r=4", images())(images())
        wanted = tokexport.reduce(seeded(0), "tome:r=4", images())(images())
    assert torch.equal(found, wanted)


class _Scaled(Vit):
    """Passes a number to its blocks."""

    def forward(self, x: Tensor, by: float = 1.0) -> Any:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, by)
        return self.head(self.norm(x)[:, 0])


class _ScaledBlock(Block):
    def forward(self, x: Tensor, by: float) -> Tensor:
        result: Tensor = super().forward(x) * by
        return result


def test_another_number_than_the_examples_is_refused() -> None:
    def change(block: Block) -> None:
        block.__class__ = _ScaledBlock

    model = with_blocks(change)
    model.__class__ = _Scaled
    reduced = tokexport.reduce(model, "tome:r=4", images())
    reduced(images(), 1.0)
    with pytest.raises(SurgeryError, match=r"with 2.0, and with 1.0 when it was"):
        reduced(images(), 2.0)


class _Careful(Block):
    """Hand-written attention that computes its softmax in float32, as many do."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn.heads(self.norm1(x))
        weights = (q * self.attn.scale) @ k.transpose(-2, -1)
        weights = weights.softmax(dim=-1, dtype=torch.float32).to(q.dtype)
        x = x + self.attn.join(weights @ v)
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


def test_a_softmax_in_another_precision_is_read() -> None:
    def change(block: Block) -> None:
        block.__class__ = _Careful

    with torch.no_grad():
        found = tokexport.reduce(with_blocks(change), "tome:r=4", images())(images())
        wanted = tokexport.reduce(seeded(0), "tome:r=4", images())(images())
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-6)


class _Flat(Vit):
    """Its head reads every token."""

    def forward(self, x: Tensor) -> Any:
        return nn.functional.linear(self.forward_features(x).flatten(1), self.wide)  # type: ignore[arg-type]


def test_a_head_that_needs_every_token_is_told_of_restore() -> None:
    model = seeded(0)
    model.wide = nn.Parameter(torch.randn(10, 37 * 48) * 0.05)
    model.__class__ = _Flat
    with pytest.raises(SurgeryError, match="With fewer tokens the model fails") as error:
        tokexport.reduce(model, "tome:r=4", images())
    assert "restore=true" in error.value.fix
    assert tokexport.reduce(model, "tome:r=4,restore=true", images())(images()).shape == (2, 10)


class _Sure(Vit):
    """Says beside its logits whether it is sure."""

    def forward(self, x: Tensor) -> Any:
        logits: Tensor = super().forward(x)
        return logits, logits.softmax(dim=-1).amax(dim=-1) > 0.5


def test_outputs_that_are_no_numbers_are_compared_too() -> None:
    model = seeded(0)
    model.__class__ = _Sure
    logits, sure = tokexport.reduce(model, "tome:r=4", images())(images())
    assert sure.dtype == torch.bool
    assert logits.shape == (2, 10)


def test_threads_do_not_take_each_others_tokens() -> None:
    model = tokexport.reduce(build("timm DeiT"), "tome:r=4", image(1))
    given = [torch.randn(1, 3, 48, 48) for _ in range(4)]
    with torch.no_grad():
        wanted = [model(x) for x in given]
    wrong: list[object] = []

    def work(number: int) -> None:
        try:
            with torch.no_grad():
                for _ in range(25):
                    if not torch.equal(model(given[number]), wanted[number]):
                        wrong.append(number)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_run_cut_short_leaves_nothing() -> None:
    model: Any = tokexport.reduce(build("timm DeiT"), "tome:r=4", image(1))
    with torch.no_grad():
        wanted = model(image(1))
        model.blocks[0](torch.randn(1, 37, 48))
        assert torch.equal(model(image(1)), wanted)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("tome:protect=-1", "protect=-1"),
        ("mctf:tau_sim=Infinity", "Option 'tau_sim'"),
        ("dynamicvit:weights=nowhere.pt", "weights does not exist"),
    ],
)
def test_values_that_are_none(recipe: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        tokexport.reduce(build("timm DeiT"), recipe, image())


def test_a_method_without_its_trained_parameters_does_not_ship(tmp_path: Any) -> None:
    with pytest.raises(ExporterError, match="only training gives"):
        tokexport.compile(
            build("timm DeiT"), image(), output=tmp_path / "out", reduce="dynamicvit:keep=0.7"
        )
