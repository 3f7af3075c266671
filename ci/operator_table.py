"""Tries every operator that published Vision Transformers call, on every target.

    python ci/operator_table.py                   goes on where it stopped
    python ci/operator_table.py --minutes 30      stops after the step that is then at work
    python ci/operator_table.py --operator NAME   asks anew for the rows of an operator
    python ci/operator_table.py --table           writes OPERATORS.md from what is known

A family (``operator_families.py``) is traced and run; every operator that it calls, with its
switches and the types of its arguments, is a row with the smallest arguments that were seen. A row
becomes a model of that one operator, which is compiled for each target and held to eager. What
comes out goes to a line of ``ci/operator_table.jsonl`` at once.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "ci" / "operator_table.jsonl"
TABLE = ROOT / "ci" / "OPERATORS.md"
TARGETS = ("ort", "openvino", "trt")
#: How far a result may be off, of its largest value, where eager is not off by a quarter of that.
TOLERANCE = 1e-5


@dataclass
class Call:
    """A call of an operator with its arguments.

    Attributes:
        operator: ``aten.name.overload``.
        target: The operator.
        args: Its arguments, tensors with their numbers.
        kwargs: Those by name.
        varies: Which of its tensors depend on the inputs of the model, in order.
        read: Which of its results the model reads; empty where it gives one.
    """

    operator: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    varies: tuple[bool, ...] = ()
    read: frozenset[int] = frozenset()

    def tensors(self) -> list[Any]:
        """Returns the tensors that it takes, in order."""
        import torch
        from torch.utils import _pytree as pytree

        return [one for one in pytree.tree_leaves((self.args, self.kwargs)) if torch.is_tensor(one)]

    def size(self) -> int:
        """Returns how many numbers it takes."""
        return sum(one.numel() for one in self.tensors())

    def switches(self) -> str:
        """Returns the key of a call of an operator: its switches, texts and types."""
        import torch
        from torch.utils import _pytree as pytree

        formals = self.target._schema.arguments
        named = dict(zip((one.name for one in formals), self.args, strict=False)) | self.kwargs
        shown = [
            f"{name}={str(value).removeprefix('torch.')}"
            for name, value in named.items()
            if isinstance(value, bool | str | torch.dtype)
            and value != next(one.default_value for one in formals if one.name == name)
        ]
        types = [str(one.dtype).removeprefix("torch.") for one in self.tensors()]
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return ", ".join([*dict.fromkeys(types), *shown]) if leaves else ""


def main() -> int:
    """Runs what is missing, or writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--operator", action="append", default=[], help="Ask for its rows anew.")
    parser.add_argument("--family", action="append", help="Only this one; may be repeated.")
    parser.add_argument("--table", action="store_true", help="Write the table and stop.")
    options = parser.parse_args()
    if options.table:
        TABLE.write_text(table(known()), encoding="utf-8")
        return 0
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "ci")]
    from helpers.torchvision_ops import define_torchvision_operators

    define_torchvision_operators()
    warnings.simplefilter("ignore")
    end = time.monotonic() + 60 * options.minutes
    anew = set(options.operator)
    rows = known()
    done = {(one["operator"], one["switches"]) for one in rows if "operator" in one}
    done = {one for one in done if one[0] not in anew}
    seen = {one["family"] for one in rows if "family" in one}
    wanted = {name for one in rows if one.get("operator") in anew for name in one["families"][:1]}
    for name in options.family or families():
        if (name in seen and name not in wanted and not options.family) or time.monotonic() > end:
            continue
        found = calls_of(name)
        if isinstance(found, str):
            note({"family": name, "failed": found})
            continue
        for (operator, switches), call in found.items():
            if (operator, switches) in done or (anew and operator not in anew):
                continue
            done.add((operator, switches))
            note({"operator": operator, "switches": switches, "families": [name], **asked(call)})
        note({"family": name, "operators": sorted(map(list, found))})
    return 0


def families() -> dict[str, Any]:
    """Returns what builds each family."""
    found: dict[str, Any] = importlib.import_module("operator_families").FAMILIES
    return found


def note(result: dict[str, Any]) -> None:
    """Adds a line to the results."""
    print(json.dumps(result), flush=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")


def known() -> list[dict[str, Any]]:
    """Returns the results, the last line of each row."""
    if not RESULTS.exists():
        return []
    lines = map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())
    found = {(one.get("family"), one.get("operator"), one.get("switches")): one for one in lines}
    return list(found.values())


def calls_of(family: str) -> dict[tuple[str, str], Call] | str:
    """Returns the operators that a family calls, with the smallest arguments; why not, if not."""
    import torch

    from tokexport.exporter.capture.trace import capture
    from tokexport.exporter.eager.flat_model import FlatModel, call_spec

    torch.manual_seed(0)
    try:
        model, inputs = families()[family]()
        flat = FlatModel(model.eval(), call_spec(model, inputs, {}))
        return _calls(capture(flat, inputs), inputs)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"


def _calls(program: Any, inputs: tuple[Any, ...]) -> dict[tuple[str, str], Call]:
    """Runs a traced program, and returns the smallest call of each row."""
    import torch
    from torch._ops import OpOverload
    from torch.fx import Interpreter, Node
    from torch.utils import _pytree as pytree

    found: dict[tuple[str, str], Call] = {}
    depends: set[Node] = set()

    class Recorded(Interpreter):
        """Keeps what calls take."""

        def run_node(self, n: Node) -> Any:
            """Runs one node."""
            if n.op == "placeholder" or any(one in depends for one in n.all_input_nodes):
                depends.add(n)
            if n.op == "call_function" and isinstance(n.target, OpOverload):
                args, kwargs = self.fetch_args_kwargs_from_env(n)
                nodes = [one for one in pytree.tree_leaves((n.args, n.kwargs)) if _is_tensor(one)]
                varies = tuple(one in depends for one in nodes)
                several = isinstance(n.meta.get("val"), list | tuple)
                read = frozenset(int(user.args[1]) for user in n.users if several)  # type: ignore[arg-type]
                call = Call(str(n.target), n.target, args, dict(kwargs), varies, read)
                key = call.operator, call.switches()
                if key not in found or call.size() < found[key].size():
                    found[key] = call
            return super().run_node(n)

    def _is_tensor(one: Any) -> bool:
        return isinstance(one, Node) and isinstance(one.meta.get("val"), torch.Tensor)

    with torch.no_grad():
        Recorded(program.module()).run(*inputs)
    return found


def one_operator(call: Call) -> tuple[Any, tuple[Any, ...]]:
    """Returns a model of one call, and its inputs: what depends on the model's.

    What does not is a constant of the model. A call of constants alone gets an input beside it.
    Complex numbers come and go as their parts.
    """
    import torch
    from torch import Tensor, nn
    from torch.utils import _pytree as pytree

    leaves, spec = pytree.tree_flatten((call.args, call.kwargs))
    places = [i for i, one in enumerate(leaves) if torch.is_tensor(one)]
    inputs = [i for i, varies in zip(places, call.varies, strict=True) if varies]

    class OneOperator(nn.Module):
        """Calls one operator."""

        def __init__(self) -> None:
            super().__init__()
            for i in places:
                if i not in inputs:
                    self.register_buffer(f"held_{i}", leaves[i].detach().clone())

        def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
            """Returns every tensor that the operator gives."""
            given = dict(zip(inputs, tensors, strict=False))
            own: list[Any] = [
                one if i not in places else given.get(i, getattr(self, f"held_{i}", None))
                for i, one in enumerate(leaves)
            ]
            for i in inputs:
                own[i] = torch.view_as_complex(own[i]) if leaves[i].is_complex() else own[i]
            args, kwargs = pytree.tree_unflatten(own, spec)
            found = call.target(*args, **kwargs)
            if call.read:
                found = [found[i] for i in sorted(call.read)]
            results = [one for one in pytree.tree_leaves(found) if torch.is_tensor(one)]
            results = [_real(one) for one in results]
            return (*results, *(tensor + 1 for tensor in tensors[len(inputs) :]))

    tensors = tuple(_real(leaves[i].detach()).clone() for i in inputs) or (torch.zeros(2),)
    return OneOperator(), tensors


def _real(value: Any) -> Any:
    """Returns complex numbers as the real ones that they consist of; others as they are."""
    import torch

    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value


def asked(call: Call) -> dict[str, str]:
    """Returns the result of an operator on each target: works, or how it is refused."""
    import torch

    from tokexport.exporter.build.emit import emit
    from tokexport.exporter.capture.trace import capture
    from tokexport.exporter.eager.flat_model import FlatModel, call_spec
    from tokexport.graph_passes import pipelines
    from tokexport.graph_passes.ops import ops

    ops.register()
    model, inputs = one_operator(call)
    flat = FlatModel(model, call_spec(model, inputs, {}))
    shapes = " ".join("×".join(map(str, one.shape)) or "1" for one in call.tensors())
    found = {"shapes": shapes}
    try:
        with torch.no_grad():
            wanted = [one.clone() for one in model(*inputs)]
        slack = _own_errors(model, inputs, wanted)
        program = pipelines.rewrite(capture(flat, inputs)).program
        names = [f"in{i}" for i in range(len(inputs))]
        emitted = emit(program, names, [f"out{i}" for i in range(len(wanted))])
    except Exception as error:
        return {**found, **dict.fromkeys(TARGETS, _said(error))}
    feeds = {f"in{i}": one.numpy() for i, one in enumerate(inputs)}
    for target in TARGETS:
        try:
            found[target] = _compiled(emitted, target, feeds, wanted, slack)
        except Exception as error:
            found[target] = _said(error)
    return found


def _own_errors(model: Any, inputs: tuple[Any, ...], wanted: list[Any]) -> list[float]:
    """Returns how far eager is off in float32, by output; zeros where it has no other type."""
    import copy

    import torch

    wide = [one.double() if one.is_floating_point() else one for one in inputs]
    try:
        with torch.no_grad():
            exact = copy.deepcopy(model).double()(*wide)
    except RuntimeError:
        return [0.0] * len(wanted)
    return [
        float((one - other).abs().nan_to_num(0.0, 0.0, 0.0).max())
        if one.is_floating_point() and one.numel()
        else 0.0
        for one, other in zip(wanted, exact, strict=True)
    ]


def _compiled(
    emitted: Any,
    target: str,
    feeds: Mapping[str, Any],
    wanted: list[Any],
    slack: list[float],
) -> str:
    """Builds the artifact of a target, and holds it to eager where it runs here."""
    from tokexport.exporter.backends.known import BACKENDS
    from tokexport.exporter.build.artifact import build
    from tokexport.exporter.build.onnx_file import save_onnx
    from tokexport.graph_passes import pipelines
    from tokexport.runtimes.openvino.runner import OpenVinoRunner
    from tokexport.runtimes.ort.runner import OrtRunner

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lowered = folder / "model.onnx"
        save_onnx(pipelines.lower(emitted.clone(), pipelines.lowering(target)).model, lowered)
        (folder / "built").mkdir()
        build(BACKENDS[target], lowered, folder / "built")
        if target == "trt":
            return "built"
        runner: Any = {"ort": OrtRunner, "openvino": OpenVinoRunner}[target]
        with runner.from_file(folder / "built" / BACKENDS[target].artifact) as opened:
            given = opened.run(dict(feeds))
    for i, value in enumerate(wanted):
        said = _differs(given[f"out{i}"], value.numpy(), slack[i])
        if said:
            return f"WRONG: {said}"
    return "works"


def _differs(found: Any, wanted: Any, own_error: float) -> str:
    """Returns how a result differs from eager's; '' if it is rounding."""
    import numpy as np

    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return f"{found.dtype} {found.shape} for {wanted.dtype} {wanted.shape}"
    finite = np.abs(np.where(np.isfinite(wanted), wanted, 0).astype(np.float64))
    scale = max(1.0, float(finite.max(initial=0.0)))
    allowed = max(TOLERANCE * scale, 4 * own_error)
    near = np.isclose(found.astype(np.float64), wanted, rtol=0, atol=allowed, equal_nan=True)
    return "" if near.all() else f"{int((~near).sum())} of {near.size} numbers"


def _said(error: Exception) -> str:
    """Returns the kind and the first line of an error."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def table(results: list[dict[str, Any]]) -> str:
    """Returns what is known in Markdown."""
    rows = sorted(
        (one for one in results if "operator" in one),
        key=lambda one: (one["operator"], one["switches"]),
    )
    families = [one for one in results if "family" in one]
    counts: dict[tuple[str, str], int] = {}
    for one in families:
        for operator, switches in one.get("operators", ()):
            counts[operator, switches] = counts.get((operator, switches), 0) + 1
    traced = [one for one in families if "operators" in one]
    lines = [
        "# The operators of Vision Transformers, and what each target makes of them",
        "",
        "Written by `python ci/operator_table.py --table`. A row is an operator as "
        f"{len(traced)} families call it (`ci/operator_families.py`), with its switches and the "
        "types of its arguments, in a model of its own with the arguments named. "
        "`works`: what it gives agrees with PyTorch; `built`: TensorRT built an engine, which did "
        "not run.",
        "",
        "| operator | types and switches | families | shapes | " + " | ".join(TARGETS) + " |",
        "|" + " --- |" * (4 + len(TARGETS)),
    ]
    for one in rows:
        count = counts.get((one["operator"], one["switches"]), 1)
        cells = [_cell(one[target]) for target in TARGETS]
        lines.append(
            f"| {one['operator']} | {one['switches']} | {count} | {one['shapes']} | "
            + " | ".join(cells)
            + " |"
        )
    refused = [one for one in families if "failed" in one]
    if refused:
        lines += ["", "Families that cannot be traced:", ""]
        lines += [f"- {one['family']}: {one['failed']}" for one in refused]
    lines += ["", "Families: " + ", ".join(one["family"] for one in traced) + "."]
    return "\n".join(lines) + "\n"


def _cell(said: str) -> str:
    return said.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
