"""Programs as torch saves them, and programs crafted to run code, one for each way that torch has.

Each crafted file is first proven to be one: with ``--trust-pickle`` its code does run.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from models.source_tiny import Tiny
from torch import Tensor, nn

from tokexport.exporter.errors import SourceError, UntrustedPickleError, UsageError
from tokexport.exporter.source import Source, SourceOptions, load_source

X = torch.ones(2, 4)
MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"
Entries = dict[str, bytes]


def load(path: Path, trust: bool = False) -> Source:
    return load_source(SourceOptions(str(path), trust_pickle=trust))


def save(model: nn.Module, path: Path, *args: Any, **options: Any) -> Path:
    torch.export.save(torch.export.export(model, args or (X,), **options), path)
    return path


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program of a model with a dynamic batch, so that its JSON holds an expression."""
    batch = torch.export.Dim("batch", min=2, max=64)
    return save(Tiny(), tmp_path / "program.pt2", dynamic_shapes=({0: batch},))


def edited(path: Path, entries: Entries) -> Path:
    """Writes the archive again with some entries replaced or added."""
    out = path.with_name("crafted.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        kept = {info.filename: old.read(info) for info in old.infolist()}
        changed = {f"{root}/{name}": data for name, data in entries.items()}
        for name, data in (kept | changed).items():
            new.writestr(name, data)
    return out


def entry(path: Path, name: str) -> Any:
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].partition("/")[0]
        return json.loads(archive.read(f"{root}/{name}"))


@pytest.mark.parametrize("name", ["program.pt2", "program.bin"])
def test_a_program_with_its_inputs_and_names(tmp_path: Path, program: Path, name: str) -> None:
    path = program.rename(tmp_path / name)
    source = load(path)
    assert source.kind == "exported-program"
    assert source.example_args is not None
    assert source.example_args[0].equal(X)
    assert source.example_kwargs == {}
    assert source.model(torch.ones(5, 4)).shape == (5, 3)
    assert list(inspect.signature(source.model.forward).parameters) == ["x"]


def test_inputs_by_name(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def forward(self, image: Tensor, *, mask: Tensor) -> dict[str, Tensor]:
            return {"masked": image * mask}

    kwargs = {"mask": torch.zeros(2, 4)}
    source = load(save(Masked(), tmp_path / "x.pt2", X, kwargs=kwargs))
    assert list(source.example_kwargs) == ["mask"]
    got = source.model(*source.example_args, **source.example_kwargs)
    assert got["masked"].equal(torch.zeros(2, 4))


def test_the_module_can_be_exported_again(program: Path) -> None:
    source = load(program)
    again = torch.export.export(source.model, (X,)).module()
    assert again(X).equal(source.model(X))


class Weighted(nn.Module):
    """Multiplies by a literal tensor, which torch.export lifts with an in-place detach."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tensor([1.0, 2.0, 3.0, 4.0])


def test_a_literal_tensor_can_be_traced_again(tmp_path: Path) -> None:
    source = load(save(Weighted(), tmp_path / "literal.pt2"))
    with torch.no_grad():
        again = torch.export.export(source.model, (X,), strict=False).module()
    assert again(X).equal(torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 2))


def test_control_flow_and_modes_are_no_reason_to_refuse(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, int]:
            with torch.no_grad():
                y = x * 2
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = y @ x.transpose(-1, -2)
            y = torch.cond(x.sum() > 0, lambda t: t + 1, lambda t: t - 1, (y.float(),))
            return y, x.shape[0] // 2

    rows = torch.export.Dim("rows", min=2, max=64)
    x = torch.randn(4, 8)
    source = load(save(Branching(), tmp_path / "x.pt2", x, dynamic_shapes=({0: rows},)))
    assert source.model(x)[0].equal(Branching()(x)[0])
    assert source.model(x)[1] == 2


def test_an_output_class_of_transformers(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    config = ViTConfig(num_hidden_layers=1, image_size=8, patch_size=4, **sizes)
    model = ViTForImageClassification(config).eval()
    path = save(model, tmp_path / "x.pt2", torch.ones(1, 3, 8, 8))
    # A process that has not imported transformers.
    code = (
        "import sys, warnings; from tokexport.exporter.source import *; "
        f"source = load_source(SourceOptions({str(path)!r})); "
        "print(type(source.model(*source.example_args)).__name__)"
    )
    from helpers.torchvision_ops import child_environment

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env=child_environment(),
        check=False,
    )
    assert done.stdout.strip() == "ImageClassifierOutput", done.stderr


def test_an_output_class_that_torch_does_not_know(tmp_path: Path) -> None:
    @dataclass
    class Output:
        logits: Tensor

    class Wrapped(nn.Module):
        def forward(self, x: Tensor) -> Output:
            return Output(x * 2)

    torch.export.register_dataclass(Output, serialized_type_name="source_tests.Known")
    path = save(Wrapped(), tmp_path / "x.pt2")
    assert load(path).model(X).logits.equal(X * 2)
    spec = json.dumps(entry(path, MODEL)).replace("source_tests.Known", "source_tests.Unknown")
    with pytest.raises(SourceError) as caught:
        load(edited(path, {MODEL: spec.encode()}))
    assert "of the class source_tests.Unknown, which torch does not know" in str(caught.value)
    assert "return a tensor, tuple or dict" in str(caught.value)


class Code:
    """Makes a file when it is unpickled, by way of the shell."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def craft_samples(path: Path, marker: Path) -> Entries:
    return {SAMPLES: pickled(((Code(marker),), {}))}


def craft_weight(path: Path, marker: Path) -> Entries:
    config = entry(path, WEIGHTS)
    payload = config["config"]["head.weight"]
    payload["use_pickle"] = True
    return {
        WEIGHTS: json.dumps(config).encode(),
        f"data/weights/{payload['path_name']}": pickled(Code(marker)),
    }


def craft_constant(path: Path, marker: Path) -> Entries:
    return _constant("tensor_9", pickled(Code(marker)))


def craft_opaque_object(path: Path, marker: Path) -> Entries:
    return _constant("opaque_obj_0", pickle.dumps(Code(marker)))


def _constant(file: str, data: bytes) -> Entries:
    payload = {"path_name": file, "is_param": False, "use_pickle": True, "tensor_meta": None}
    config = {"config": {"made": payload}}
    return {CONSTANTS: json.dumps(config).encode(), f"data/constants/{file}": data}


def craft_older_weights(path: Path, marker: Path) -> Entries:
    return {"data/weights/model.pt": pickled({"first.weight": Code(marker)})}


def craft_older_constants(path: Path, marker: Path) -> Entries:
    return {"data/constants/model.pt": pickled({"made": Code(marker)})}


def craft_expression(path: Path, marker: Path) -> Entries:
    text = json.dumps(entry(path, MODEL))
    start = text.index('"expr_str": "') + len('"expr_str": "')
    end = text.index('"', start)
    code = f"__import__('os').system('touch {marker}')"
    return {MODEL: f"{text[:start]}{code}{text[end:]}".encode()}


def craft_buffer_name(path: Path, marker: Path) -> Entries:
    """Ends the string that the generated source has the buffer's name in."""
    # As numbers: a name is split at its dots.
    numbers = list(f"open({str(marker)!r}, 'x').close()".encode())
    return _renamed(path, f'table") if exec(bytes({numbers})) else getattr(self, "table')


def _renamed(path: Path, name: str) -> Entries:
    program = entry(path, MODEL)
    for spec in program["graph_module"]["signature"]["input_specs"]:
        if "buffer" in spec:
            spec["buffer"]["buffer_name"] = name
    config = entry(path, WEIGHTS)
    config["config"][name] = config["config"].pop("table")
    return {MODEL: json.dumps(program).encode(), WEIGHTS: json.dumps(config).encode()}


CRAFTED: list[tuple[Callable[[Path, Path], Entries], str, str]] = [
    (craft_samples, SAMPLES, "system"),
    (craft_weight, WEIGHTS, "'head.weight' in weight_"),
    (craft_constant, CONSTANTS, "'made' in tensor_9"),
    (craft_opaque_object, CONSTANTS, "'made' is a pickled object (opaque_obj_0)"),
    (craft_older_weights, "data/weights/model.pt", "system"),
    (craft_older_constants, "data/constants/model.pt", "system"),
    (craft_expression, MODEL, "is not an expression of sizes"),
    (craft_buffer_name, MODEL, "'buffer_name'"),
]


@pytest.mark.parametrize(("craft", "where", "what"), CRAFTED, ids=lambda value: str(value)[:24])
def test_no_code_of_a_crafted_program_runs(
    program: Path, marker: Path, craft: Callable[[Path, Path], Entries], where: str, what: str
) -> None:
    path = edited(program, craft(program, marker))
    with pytest.raises(UntrustedPickleError) as caught:
        load(path)
    assert not marker.exists()
    message = str(caught.value)
    assert "Loading the exported program could run code that is in it" in message
    assert f"entry {where}" in message
    assert what in message
    assert "Export the model again (torch.export.save(" in message
    assert "--trust-pickle" in message
    # What the code returns is of no use, so loading or running fails, after it ran.
    with contextlib.suppress(SourceError, AttributeError):
        load(path, trust=True).model(X)
    assert marker.exists()


@pytest.mark.parametrize(
    "name",
    ["DATA/sample_inputs/model.pt", "data/Sample_Inputs/model.pt", "data/sample_inputs/model.PT"],
)
def test_a_name_in_other_letters_is_refused(program: Path, marker: Path, name: str) -> None:
    out = program.with_name("renamed.pt2")
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(out, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        for info in old.infolist():
            if info.filename == f"{root}/{SAMPLES}":
                new.writestr(f"{root}/{name}", craft_samples(program, marker)[SAMPLES])
            else:
                new.writestr(info.filename, old.read(info))
    with pytest.raises(UntrustedPickleError, match="in other letters"):
        load(out)
    assert not marker.exists()


def test_guards_are_never_run(program: Path, marker: Path) -> None:
    content = entry(program, MODEL)
    content["guards_code"] = [f"__import__('os').system('touch {marker}')"]
    path = edited(program, {MODEL: json.dumps(content).encode()})
    for trust in (True, False):
        load(path, trust).model(X)
        assert not marker.exists()


def change_target(program: dict[str, Any]) -> None:
    program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"


def change_operator_argument(program: dict[str, Any]) -> None:
    node = program["graph_module"]["graph"]["nodes"][0]
    node["inputs"][0]["arg"] = {"as_operator": "torch.os.system"}


def change_value_name(program: dict[str, Any]) -> None:
    program["graph_module"]["graph"]["nodes"][0]["name"] = "x; import os"


def change_parameter(program: dict[str, Any]) -> None:
    call = program["graph_module"]["module_call_graph"][0]["signature"]
    call["forward_arg_names"] = ["x=print()"]


def change_tree(program: dict[str, Any]) -> None:
    call = program["graph_module"]["module_call_graph"][0]["signature"]
    level = {"type": "collections.defaultdict", "context": {}, "children_spec": []}
    call["out_spec"] = json.dumps([1, level])


def change_enumeration(program: dict[str, Any]) -> None:
    call = program["graph_module"]["module_call_graph"][0]["signature"]
    context = '[{"\\u005f_enum__": true, "fqn": "os:x", "name": "y"}]'
    level = {"type": "builtins.dict", "context": context, "children_spec": []}
    call["out_spec"] = json.dumps([1, level])


def change_keyword(program: dict[str, Any]) -> None:
    call = program["graph_module"]["module_call_graph"][0]["signature"]
    spec = json.loads(call["in_spec"])
    spec[1]["children_spec"][1]["context"] = '["a=print()"]'
    call["in_spec"] = json.dumps(spec)


def change_key(program: dict[str, Any]) -> None:
    values = program["graph_module"]["graph"]["tensor_values"]
    values["x, y=print()"] = values["x"]


def change_file_operator(program: dict[str, Any]) -> None:
    program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"


def change_library(program: dict[str, Any]) -> None:
    program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.load_library"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (change_target, "the function 'torch.os.system' is not an operator on tensors"),
        (change_operator_argument, "the function 'torch.os.system' is not an operator"),
        (change_value_name, "the name 'x; import os' is not one of a value"),
        (change_parameter, "the name 'x=print()' is not one of a value"),
        (change_tree, "a collections.defaultdict, which names a function to import"),
        (change_enumeration, "an enumeration to import"),
        (change_keyword, "the input's name 'a=print()'"),
        (change_key, "the name 'x, y=print()' in 'tensor_values'"),
        (change_file_operator, "reads or writes files"),
        (change_library, "'torch.ops.load_library' is not an operator on tensors"),
    ],
)
def test_fields_that_become_python_are_held_to_their_form(
    program: Path, change: Callable[[dict[str, Any]], None], what: str
) -> None:
    content = entry(program, MODEL)
    change(content)
    with pytest.raises(UntrustedPickleError) as caught:
        load(edited(program, {MODEL: json.dumps(content).encode()}))
    assert what in str(caught.value)


def test_a_compiled_library_is_refused(program: Path) -> None:
    path = edited(program, {"data/aotinductor/model/a.so": b"\x7fELF"})
    with pytest.raises(UntrustedPickleError, match="a compiled library"):
        load(path)


def test_the_old_layout_is_refused(tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "x.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("serialized_state_dict.pt", pickled(Code(marker)))
    with pytest.raises(SourceError) as caught:
        load(path)
    assert "in the layout of torch 2.7 and before" in str(caught.value)
    assert "Export it again" in str(caught.value)
    assert not marker.exists()


def test_a_damaged_program(program: Path) -> None:
    for data in (b"{}", b"[]", b"not json", b'{"graph_module": 3}'):
        with pytest.raises(SourceError) as caught:
            load(edited(program, {MODEL: data}))
        assert "exported program cannot be read" in str(caught.value)
        assert "Export it again" in str(caught.value)


def test_a_program_of_another_version(program: Path) -> None:
    content = entry(program, MODEL)
    content["schema_version"]["major"] += 1
    with pytest.raises(SourceError) as caught:
        load(edited(program, {MODEL: json.dumps(content).encode()}))
    assert "does not match our current schema version" in str(caught.value)


def test_a_program_cut_short(program: Path) -> None:
    program.write_bytes(program.read_bytes()[:-200])
    with pytest.raises(SourceError, match="cut short or damaged"):
        load(program)


@pytest.mark.parametrize("option", ["builder", "checkpoint"])
def test_options_that_do_not_go_with_it(program: Path, option: str) -> None:
    given: Any = {"builder": "source_tiny:build", "checkpoint": program}[option]
    with pytest.raises(UsageError, match=f"--{option} does not go with this source"):
        load_source(SourceOptions(str(program), **{option: given}))


@pytest.mark.parametrize(
    "body",
    [
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\2\x85R.",  # 8 GiB
        b"\x80\x02}K\x01" + b"\x85" * 500_000 + b"K\x01s.",  # its hash leaves the stack
    ],
)
def test_a_pickle_that_asks_for_all_memory_is_refused(program: Path, body: bytes) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a/data.pkl", body)
        archive.writestr("a/version", b"3\n")
    with pytest.raises(UntrustedPickleError, match="a pickle that is damaged"):
        load(edited(program, {SAMPLES: inner.getvalue()}))
