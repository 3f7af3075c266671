"""Puts a reduction method into a plain ViT: the stage between source and capture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tokexport.exporter.config import InputConfig
from tokexport.exporter.eager.eager_form import copy_around_tensors
from tokexport.exporter.eager.example_inputs import prepare
from tokexport.exporter.eager.flat_model import FlatModel
from tokexport.exporter.eager.reference import tensors_of
from tokexport.exporter.errors import UsageError, listed
from tokexport.exporter.recipe import Recipe, parse_recipe
from tokexport.exporter.reduction.blocks.observed_calls import Call
from tokexport.exporter.reduction.blocks.search import FoundBlock, find_blocks
from tokexport.exporter.reduction.blocks.special_tokens import count_special_tokens, other_inputs
from tokexport.exporter.reduction.output_meaning import Judged, Shortened, shortened_outputs
from tokexport.exporter.reduction.shown_blocks import Shown, Watched, shown_blocks
from tokexport.exporter.reduction.surgery_gate import surgery_error
from tokexport.exporter.reduction.tokens_per_layer import tokens_per_layer
from tokexport.exporter.source.files.checkpoint import read_state_dict
from tokexport.exporter.source.in_memory import source_in_memory
from tokexport.exporter.system.process_state import process_unchanged
from tokexport.graph_passes.reduction.errors import SurgeryError
from tokexport.graph_passes.reduction.method import Layer, Method
from tokexport.graph_passes.reduction.surgery.reduced_block import (
    TRAINED,
    BlockCall,
    Flow,
    Mark,
    ReducedBlock,
    Surgery,
    reduced_block,
)


def trained_names(model: nn.Module) -> list[str]:
    """Returns the names of the parameters that a method added to a model."""
    return [
        f"{path}.{TRAINED}.{name}"
        for path, block in model.named_modules()
        if isinstance(block, ReducedBlock) and TRAINED in block._modules
        for name in block.get_submodule(TRAINED).state_dict()
    ]


def load_trained(model: nn.Module, path: Path) -> None:
    """Loads the method's own parameters from a file that may hold the whole model's.

    Raises:
        UsageError: The method has none, or the file lacks one or holds one of another shape.
        SourceError: The file cannot be read.
    """
    names = trained_names(model)
    if not names:
        raise UsageError("The method has no trained parameters.", fix="Leave weights=… out.")
    if not path.is_file():
        raise UsageError(
            "The file of the method's weights does not exist.",
            where=str(path),
            fix="Pass weights=FILE, a .safetensors or .pt file.",
        )
    given = read_state_dict(path).tensors
    own = model.state_dict()
    misfits = [n for n in names if n not in given or given[n].shape != own[n].shape]
    if misfits:
        raise UsageError(
            f"The file does not hold the method's parameters: {listed(misfits, 4)}.",
            where=str(path),
            fix="Give what torch.save(reduced_model.state_dict(), path) wrote.",
        )
    with torch.no_grad():
        for name in names:
            own[name].copy_(given[name])


@dataclass(frozen=True)
class Reduction:
    """A reduced model, and how it was reduced.

    Attributes:
        model: The module; it shares its parameters with the user's model.
        recipe: What went into it.
        blocks: The names of its blocks.
        special: How many tokens at the front are no patches.
        error: The largest difference between the model and the surgery with nothing reduced,
            relative to the output's scale.
        tokens: Tokens of an image that enter the first block, and that leave each; none on torch's
            meta device.
        shortened: The outputs that have fewer tokens.
    """

    model: nn.Module
    recipe: Recipe
    blocks: tuple[str, ...]
    special: int
    error: float
    tokens: tuple[int, ...]
    shortened: tuple[Shortened, ...] = ()


@process_unchanged()
def reduce(
    model: nn.Module, recipe: str | Path | Method | Recipe, example_inputs: Any = None
) -> nn.Module:
    """Returns a model with a token reduction in its blocks.

    It has the parameters of the given model, the very tensors, under their names: what trains one
    trains the other, and a state dict of one fits the other. The given model is left as it was. The
    blocks run as in evaluation mode: dropout and stochastic depth in them are off.

    Args:
        model: A plain ViT of timm, torchvision, transformers, open_clip or your own.
        recipe: The method and its options, as ``tome:r=8``; the path of a .toml or .json file; or
            a method object. ``tokexport methods`` lists the methods, with options and defaults.
        example_inputs: A tensor, a tuple of them, or a dict by the names of ``forward``; needed
            where the model does not say what it takes. Default None.

    Returns:
        The reduced module: it takes what the given model takes, and shares its parameters.

    Raises:
        UsageError: The recipe or the inputs do not fit.
        ModelNotSupportedError: The model has no blocks that can be taken apart.
        tokexport.graph_passes.reduction.errors.SurgeryError: Its blocks cannot, or not for this
            method, or an output would mean something else; the message has the reason.
        GateError: The surgery alone already changes what the model computes.
    """
    source = source_in_memory(model, example_inputs)
    flat, _, batches = prepare(source, InputConfig())
    return reduce_flat(flat, tensors_of(next(iter(batches))), parse_recipe(recipe)).model


def reduce_flat(flat: FlatModel, inputs: Sequence[Tensor], recipe: Recipe) -> Reduction:
    """Reduces a model of flat tensors; raises as ``reduce`` does."""
    blocks = find_blocks(flat, inputs, recipe.blocks)
    first = blocks[0].call
    special = recipe.protect
    if special is None:
        special = count_special_tokens(flat, inputs, first.path)
    _check(recipe.method, special, blocks)
    turns = any(term is not None for block in blocks for term in block.terms)
    others = other_inputs(inputs, 3)

    def rebuild(method: Method, flow: Flow) -> nn.Module:
        return _rebuilt(flat.model, blocks, method, flow)

    error = surgery_error(flat, rebuild, Flow(special, traced=turns), len(blocks), others)
    plain = rebuild(Method(), watched := Watched(special, turns))
    shown = shown_blocks(FlatModel(plain, flat.spec), watched, len(blocks), inputs)
    restore = _restored_behind(recipe.restore, shown, len(blocks))
    flow = Flow(special, traced=turns or bool(restore), restore=restore)
    model = rebuild(recipe.method, flow)
    if recipe.weights is not None:
        load_trained(model, Path(recipe.weights))
    run = tokens_per_layer(FlatModel(model, flat.spec), inputs, restored=bool(restore))
    shortened: tuple[Shortened, ...] = ()
    if run is not None:
        judged = Judged(flat, rebuild, special, restore, shown)
        shortened = shortened_outputs(judged, run, others)
    paths = tuple(block.call.path for block in blocks)
    tokens = () if run is None else run.tokens
    return Reduction(model, recipe, paths, special, error, tokens, shortened)


def _check(method: Method, special: int, blocks: Sequence[FoundBlock]) -> None:
    """Refuses a method whose needs the model does not meet."""
    tokens = int(blocks[0].call.x.shape[1])
    if special < 0:
        raise UsageError(f"protect={special}.", fix="Give 0 or more special tokens.")
    if special >= tokens:
        raise UsageError(
            f"protect={special} leaves no token to reduce.", fix=f"There are {tokens} tokens."
        )
    if method.needs_class_token and special == 0:
        raise SurgeryError(
            f"Method '{method.name}' reads the attention of a class token, and the model has none.",
            where=f"All {tokens} tokens at '{blocks[0].call.path}' depend on the input.",
            fix="Take a method without one, such as tome, or pass protect=1 if the first token "
            "is a class token after all.",
        )
    for block in blocks:
        for term in block.terms:
            if term is not None and term.skipped > special:
                raise SurgeryError(
                    f"The first {term.skipped} tokens have no rotary position, and only {special} "
                    "are protected.",
                    where=f"At '{block.call.path}'.",
                    fix=f"Say protect={term.skipped}.",
                )
    for name, value in vars(method).items():
        if isinstance(value, tuple) and name != "layers" and len(value) != len(blocks):
            raise UsageError(
                f"Option '{name}' holds {len(value)} numbers, and the model has {len(blocks)} "
                "blocks.",
                fix="Give one number for each block, or one for all.",
            )
    if method.layers is not None and not set(method.layers) <= set(range(len(blocks))):
        raise UsageError(
            f"layers is {list(method.layers)}, and the model has {len(blocks)} blocks.",
            fix=f"Give numbers from 0 to {len(blocks) - 1}.",
        )


def _restored_behind(restore: bool | tuple[int, ...], shown: Shown, depth: int) -> frozenset[int]:
    """Returns the blocks after which all tokens are restored: with True, wherever they are read."""
    if restore is False:
        return frozenset()
    behind = frozenset(restore) if isinstance(restore, tuple) else shown.restorable
    if not behind <= set(range(depth)):
        raise UsageError(
            f"restore is {sorted(behind)}, and the model has {depth} blocks.",
            fix=f"Give numbers from 0 to {depth - 1}.",
        )
    return behind | {depth - 1}


def _rebuilt(
    model: nn.Module, blocks: Sequence[FoundBlock], method: Method, flow: Flow
) -> nn.Module:
    """Returns a copy of a model, on its own parameters, with reduced blocks in it."""
    copied = copy_around_tensors(model)
    for index, block in enumerate(blocks):
        own = copied.get_submodule(block.call.path)
        surgery = Surgery(
            block.parts, block.terms, _form(block.call), method, Layer(index, len(blocks)), flow
        )
        reduced = reduced_block(own, surgery)
        for parent in list(copied.modules()):  # a block may be registered twice
            for name, child in parent._modules.items():
                if child is own:
                    parent._modules[name] = reduced
    return copied


def _form(call: Call) -> BlockCall:
    """Returns the call of a block, without the values of the example."""
    leaves, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(call.leaves, call.tree))
    paths = [path for path, _ in leaves]
    result = [Mark.NOT_COMPUTED if isinstance(leaf, Tensor) else leaf for leaf in call.result]
    result[call.result_tokens] = Mark.TOKENS
    return BlockCall(
        paths[call.tokens],
        tuple(paths[position] for position in call.extras),
        {path: leaf for path, leaf in leaves if not isinstance(leaf, Tensor)},
        pytree.tree_unflatten(result, call.result_tree),
    )
