from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tokexport.exporter.errors import SourceError, UsageError
from tokexport.exporter.source import Source, SourceOptions, load_source

Folders = tuple[Path, ...]
X = torch.ones(2, 4)


def load(name: str, folders: Folders) -> Source:
    return load_source(SourceOptions(name, folders))


def refusal(name: str, folders: Folders) -> str:
    with pytest.raises(SourceError) as caught:
        load(name, folders)
    return str(caught.value)


def write(folder: Path, name: str, text: str) -> Folders:
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return (folder,)


@pytest.mark.parametrize(
    "factory", ["build", "Tiny", "module", "Builders.tiny", "made_in_function"]
)
def test_what_a_factory_may_be(models: Folders, factory: str) -> None:
    source = load(f"source_tiny:{factory}", models)
    assert source.kind == "factory"
    assert source.location == f"source_tiny:{factory}"
    assert source.model(X).shape == (2, 3)
    assert source.example_args is None
    assert source.example_kwargs == {}


@pytest.mark.parametrize(
    ("factory", "args", "kwargs"),
    [
        ("with_tensor", (X,), {}),
        ("with_tuple", (X, 3), {}),
        ("with_list", (X,), {}),
        ("with_names", (), {"x": X}),
    ],
)
def test_example_inputs(
    models: Folders, factory: str, args: tuple[object, ...], kwargs: dict[str, object]
) -> None:
    source = load(f"source_tiny:{factory}", models)
    torch.testing.assert_close((source.example_args, source.example_kwargs), (args, kwargs))


def test_the_path_is_as_it_was_afterwards(models: Folders) -> None:
    before = list(sys.path)
    load("source_tiny:build", models)
    refusal("source_tiny:fails", models)
    assert sys.path == before


def test_the_hash_follows_the_weights(models: Folders) -> None:
    def digest(factory: str, seed: int) -> str:
        torch.manual_seed(seed)
        return load(f"source_tiny:{factory}", models).sha256

    assert digest("build", 1) == digest("build", 1)
    assert len({digest("build", 1), digest("build", 2), digest("Tiny", 1)}) == 3


@pytest.mark.parametrize(
    ("factory", "said", "do"),
    [
        ("biuld", "The module 'source_tiny' has no 'biuld'", "It has build"),
        ("Builders.big", "has no 'big'", "It has tiny"),
        ("NOT_CALLABLE", "cannot be called: it is of the type int", "Name a function or a class"),
        ("needs_size", "needs arguments: size", "give them defaults"),
        ("returns_class", "returned the class Tiny itself", "Return a torch.nn.Module"),
        ("returns_pair", "returned (int, str)", "or (module, example_inputs)"),
        ("without_tensor", "hold no tensor (they are a str)", "Return (module, tensor)"),
        ("fails", "failed: ValueError: no such width: 7", "the model's own code"),
        ("leaves", "failed: SystemExit: 4", "the model's own code"),
    ],
)
def test_what_it_may_not_be(models: Folders, factory: str, said: str, do: str) -> None:
    message = refusal(f"source_tiny:{factory}", models)
    assert said in message
    assert do in message
    assert "Traceback" not in message


def test_the_line_is_the_persons_own(models: Folders) -> None:
    text = (models[0] / "source_tiny.py").read_text(encoding="utf-8").splitlines()
    for factory, line in (("fails", "no such width"), ("fails_in_torch", "nn.Linear(-1, 2)")):
        number = next(index for index, found in enumerate(text, 1) if line in found)
        message = refusal(f"source_tiny:{factory}", models)
        assert f"source_tiny.py:{number}" in message


def test_a_module_that_is_not_there(tmp_path: Path) -> None:
    message = refusal("source_no_such:build", (tmp_path,))
    assert "There is no module 'source_no_such'" in message
    assert f"Searched: {tmp_path}, and the installed packages" in message
    assert "Pass --code-path DIR" in message
    assert "no --code-path given" in refusal("source_no_such:build", ())
    write(tmp_path, "source_plain_module", "")
    message = refusal("source_plain_module.inner:build", (tmp_path,))
    assert "There is no module 'source_plain_module.inner'" in message


def test_a_folder_of_the_code_path_that_is_not_there(tmp_path: Path) -> None:
    message = refusal("source_tiny:build", (tmp_path / "no",))
    assert "A folder of --code-path is not there" in message
    assert str(tmp_path / "no") in message


def test_a_module_that_needs_what_is_not_installed(tmp_path: Path) -> None:
    folders = write(tmp_path, "source_needs_more", "\nimport source_not_installed\n")
    message = refusal("source_needs_more:build", folders)
    assert "The module 'source_needs_more' needs 'source_not_installed'" in message
    assert "source_needs_more.py:2" in message
    assert "Install the package" in message


def test_a_module_that_fails_while_it_is_imported(tmp_path: Path) -> None:
    message = refusal("source_broken:build", write(tmp_path, "source_broken", "x = 1\ny = x / 0\n"))
    assert "Importing the module 'source_broken' failed: ZeroDivisionError" in message
    assert "source_broken.py:2" in message
    message = refusal("source_typo:build", write(tmp_path, "source_typo", "x = 1\ndef f(:\n"))
    assert "SyntaxError" in message
    assert "source_typo.py:2" in message


def test_a_name_that_another_module_has(tmp_path: Path) -> None:
    message = refusal("models.net:build", write(tmp_path, "models", "x = 1\n"))
    assert "Another module named 'models' is imported already" in message
    assert str(tmp_path / "models.py") in message


@pytest.mark.parametrize("builder", ["model.py", "build", "a:b:c", "1a:b"])
def test_a_builder_of_another_form(tmp_path: Path, models: Folders, builder: str) -> None:
    torch.save({"x": X}, tmp_path / "x.pt")
    with pytest.raises(SourceError) as caught:
        load_source(SourceOptions(str(tmp_path / "x.pt"), models, builder=builder))
    assert f"{builder!r} does not name a factory" in str(caught.value)
    assert "mymodel:build" in str(caught.value)


def test_a_builder_does_not_go_with_a_factory(models: Folders) -> None:
    with pytest.raises(UsageError) as caught:
        load_source(SourceOptions("source_tiny:build", models, builder="source_tiny:build"))
    assert "--builder does not go with this source" in str(caught.value)
    assert "--checkpoint" in str(caught.value)
