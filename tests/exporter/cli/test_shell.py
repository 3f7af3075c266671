"""What the shell and the folder do around the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cli import MODELS, Compiled, compile_model, in_own_process, tokexport
from torch import nn

import tokexport as package
from tokexport.exporter.errors import ModelNotSupportedError, UsageError

SOURCE = f"{MODELS}:with_inputs"
FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("options", [(), pytest.param(("--json",), marks=pytest.mark.thorough)])
def test_a_full_disk_behind_stdout_is_told_on_stderr(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("compile", SOURCE, "--target", "ort", "--output", out, *options)
    answer = in_own_process(*arguments, prefix=("sh", "-c", '"$@" > /dev/full', "sh"))
    assert answer.code == 4, answer
    assert "Standard output cannot be written: No space left on device." in answer.stderr
    assert f"The bundle is whole, at {out}." in answer.stderr
    assert tokexport("verify", out).code == 0


def test_the_output_lies_where_the_command_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "moves_away.py").write_text(
        "import os\nfrom models.cli_models import with_inputs\n"
        "def build():\n    os.chdir(os.path.dirname(__file__))\n    return with_inputs()\n"
    )
    monkeypatch.chdir(tmp_path)
    answer = compile_model("moves_away:build", Path("out"), "--code-path", "code")
    assert answer.code == 0, answer
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["code", "out"]


def test_what_native_code_prints_is_no_part_of_the_json(tmp_path: Path) -> None:
    (tmp_path / "prints.py").write_text(
        "import ctypes, os\nfrom models.cli_models import with_inputs\n"
        "def build():\n    os.write(1, b'by descriptor\\n')\n"
        "    ctypes.CDLL(None).puts(b'by the C library')\n    return with_inputs()\n"
    )
    arguments = ("compile", "prints:build", "--code-path", tmp_path, "--target", "ort", "--json")
    answer = in_own_process(*arguments, "--output", tmp_path / "out")
    assert (answer.code, json.loads(answer.stdout)["status"]) == (0, "PASSED")
    assert {path.name for path in tmp_path.iterdir()} <= {"prints.py", "__pycache__", "out"}
    assert "by descriptor" in answer.stderr
    assert "by the C library" in answer.stderr


def test_a_module_that_parses_the_command_line_meets_none_of_ours(tmp_path: Path) -> None:
    text = (
        "import argparse\nfrom models.cli_models import with_inputs as build\n"
        "parser = argparse.ArgumentParser()\nparser.add_argument('--data', {})\n"
        "options = parser.parse_args()\n"
    )
    (tmp_path / "parses_any.py").write_text(text.format("default='here'"))
    (tmp_path / "parses_some.py").write_text(text.format("required=True"))
    out = tmp_path / "out"
    assert compile_model("parses_any:build", out, "--code-path", tmp_path).code == 0
    answer = compile_model("parses_some:build", tmp_path / "no", "--code-path", tmp_path)
    assert answer.code == 2
    assert "ends the process when it is imported: exit 2" in answer.said
    assert "__main__" in answer.said


def test_an_unknown_target_or_option_is_told_in_true_words(tmp_path: Path) -> None:
    answer = compile_model(SOURCE, tmp_path / "out", target="onnx")
    assert answer.code == 2
    assert "there is no target 'onnx'" in answer.said
    assert "Value error" not in answer.said
    model = nn.Linear(3, 3).eval()
    for wrong, near in (("ouput", "output"), ("precison", "precision"), ("tokencap", "token_cap")):
        with pytest.raises(UsageError, match=f"Did you mean {near}?"):
            package.compile(model, torch.ones(1, 3), **{wrong: "out"})  # type: ignore[call-arg]


def test_another_byte_order_holds_the_same_numbers(compiled: Compiled) -> None:
    with np.load(compiled.inputs) as file:
        own = file["x"][:2]
    with package.runtimes.load(compiled.bundle) as runner:
        (wanted,) = runner.run({"x": own}).values()
        (found,) = runner.run({"x": own.astype(own.dtype.newbyteorder(">"))}).values()
    assert np.array_equal(found, wanted)


def test_a_scripted_part_is_named(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="script"):
        scripted = torch.jit.script(nn.Linear(3, 3))
    model = nn.Sequential(nn.Linear(3, 3), scripted).eval()
    with pytest.raises(ModelNotSupportedError, match="'1' is TorchScript"):
        package.compile(model, torch.ones(1, 3), output=tmp_path / "out")


class Counts(nn.Module):
    """Keeps what it was given last."""

    last: torch.Tensor

    def __init__(self, anew: bool) -> None:
        super().__init__()
        self.anew, self.layer = anew, nn.Linear(3, 3)
        self.register_buffer("last", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.anew:
            self.last = self.last + 1
        else:
            self.last += 1
        y: torch.Tensor = self.layer(x) + self.last
        return y


@pytest.mark.parametrize(
    ("anew", "said"),
    [
        (False, r"rewrites its own weights[\s\S]*model\.last"),
        (True, r"depends on the runs before it: it keeps model\.last between runs"),
    ],
)
def test_a_model_that_rewrites_a_buffer_is_told_that(anew: bool, said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotSupportedError, match=said) as error:
        package.compile(Counts(anew).eval(), torch.ones(1, 3), output=tmp_path / "out")
    assert "random" not in str(error.value)
