"""run on pictures: their classes as a table, as JSON and as CSV; broken files among them."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cli import Compiled, refusal, tokexport
from PIL import Image
from torch import Tensor, nn

from tokexport.exporter.compile import compile
from tokexport.runtimes.pictures import decode, parse_preprocessing

SIDE = 8
STEPS = f"size={SIDE},mean=half"
NAMES = ("crane", "ibis", "crane", "a, b", "=1+1", "[red]wolf")


class Linear(nn.Module):
    """Six classes of an image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3 * SIDE * SIDE, len(NAMES))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(x.flatten(1))
        return found


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that takes two pictures at once."""
    folder = tmp_path_factory.mktemp("classify")
    (folder / "names.txt").write_text("\n".join(NAMES))
    example = torch.rand(2, 3, SIDE, SIDE)
    options = {"labels": folder / "names.txt", "preprocess": STEPS, "timed": False, "page": False}
    return compile(Linear(), example, output=folder / "out", **options).bundle  # type: ignore[arg-type]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of five pictures, one of them deeper, and of a text."""
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    random = np.random.default_rng(5)
    for name in ("a.png", "b [bold].png", "c.jpg", "deeper/d.png", "é.png"):
        Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


def probabilities(path: Path) -> np.ndarray:
    """What the model makes of a picture in eager."""
    x = parse_preprocessing(STEPS).apply(decode(path).pixels)
    with torch.no_grad():
        return Linear()(torch.from_numpy(x)[None]).softmax(-1)[0].numpy()


def test_a_picture_prints_its_classes(
    bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    answer = tokexport("run", bundle, "c.jpg", "--top", "3")
    assert answer.code == 0
    header, *lines = answer.stdout.splitlines()
    assert header.split() == ["file", "class", "label", "probability"]
    wanted = probabilities(Path("c.jpg"))
    assert len(lines) == 3
    for line, index in zip(lines, np.argsort(-wanted), strict=False):
        assert f"{index}  {NAMES[index]}" in line
        assert line.endswith(f" {wanted[index]:.2%}")
    assert ["c.jpg" in line for line in lines] == [True, False, False]


def test_a_folder_in_json(bundle: Path, photos: Path) -> None:
    found = tokexport("run", bundle, photos, photos / "a.png", "--top", "2", "--json").json
    names = ["a.png", "b [bold].png", "c.jpg", "é.png", "deeper/d.png", "a.png"]
    assert [one["file"] for one in found["pictures"]] == [str(photos / name) for name in names]
    assert (found["exit_code"], found["score"], found["csv"]) == (0, "probability", None)
    assert found["warnings"] == ["Files of the folder that are no pictures were left out: 1."]
    for one in found["pictures"]:
        wanted = probabilities(Path(one["file"]))
        order = np.argsort(-wanted)
        for scored, index, after in zip(one["classes"], order, order[1:3], strict=False):
            assert (scored["index"], scored["label"]) == (index, NAMES[index])
            assert scored["score"] == pytest.approx(wanted[index], rel=1e-4)
            margin = wanted[index] - wanted[after]
            assert scored["margin"] == pytest.approx(margin, rel=1e-2, abs=1e-6)
    assert tokexport("run", bundle, photos, "--json").json["pictures"][0]["classes"][4:]


def test_a_batch_that_is_filled_up_is_said_where_samples_may_lean_on_others(
    bundle: Path, photos: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    assert manifest["samples_independent"] is True
    manifest["samples_independent"] = False
    (copy / "manifest.json").write_text(json.dumps(manifest))
    one, two = photos / "a.png", photos / "c.jpg"
    (said,) = tokexport("run", copy, one, "--json").json["warnings"]
    assert "The last batch of 2 was filled up" in said
    assert tokexport("run", copy, one, two, "--json").json["warnings"] == []
    assert tokexport("run", bundle, one, "--json").json["warnings"] == []
    given = ("run", copy, "--inputs", one, "--output", tmp_path / "y.npz", "--json")
    assert said in tokexport(*given).json["warnings"]


def test_a_path_that_the_system_refuses_does_not_stop_the_others(
    bundle: Path, photos: Path
) -> None:
    long = photos / ("a" * 300)
    found = tokexport("run", bundle, long, photos / "a.png", "--json").json
    assert [one["error"] is None for one in found["pictures"]] == [False, True]
    assert (found["exit_code"], found["error"]["kind"]) == (2, "InputError")


def test_csv_is_read_back(bundle: Path, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    answer = tokexport("run", bundle, photos, "--csv", path, "--top", "1")
    assert f"The classes are in {path}." in answer.said
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    assert [*rows[0]] == ["file", "rank", "class", "label", "score", "margin", "error"]
    assert len(rows) == 5
    for row in rows:
        wanted = probabilities(Path(row["file"]))
        assert int(row["class"]) == wanted.argmax()
        assert row["label"] == NAMES[wanted.argmax()]
        assert float(row["score"]) == pytest.approx(wanted.max(), rel=1e-4)
    printed = tokexport("run", bundle, photos, "--csv", "-", "--top", "1")
    left_out = "Files of the folder that are no pictures were left out: 1.\n"
    assert (printed.code, printed.stderr) == (0, left_out)
    assert printed.stdout == path.read_text(encoding="utf-8")
    again = ("run", bundle, photos, "--csv", path)
    refusal(tokexport(*again), 2, tmp_path, "The output file is there already.")
    assert tokexport(*again, "--force").code == 0
    assert len(path.read_text().splitlines()) == 26
    refusal(tokexport("run", bundle, photos, "--csv", tmp_path), 2, tmp_path, "is a folder")


def test_broken_pictures_are_reported_and_the_others_go_on(bundle: Path, photos: Path) -> None:
    (photos / "b [bold].png").write_bytes(b"no")
    (photos / "\x1b[2J\n.png").write_bytes((photos / "a.png").read_bytes()[:50])
    given = ("run", bundle, photos, photos / "missing.png", "--top", "1")
    answer = tokexport(*given)
    assert answer.code == 2
    assert "error: Some pictures cannot be used: 3 of 7." in answer.said
    assert "warning  Files of the folder that are no pictures were left out: 1." in answer.stdout
    assert "\x1b" not in answer.stdout + answer.stderr
    found = tokexport(*given, "--json").json
    assert found["exit_code"] == 2
    assert found["error"]["what"] == "Some pictures cannot be used: 3 of 7."
    errors = {Path(one["file"]).name: one["error"] for one in found["pictures"]}
    assert errors["b [bold].png"] == "The file is not a picture that Pillow reads."
    assert errors["missing.png"] == "The picture does not exist."
    assert "cut off" in errors[r"\x1b[2J\n.png"]
    assert "Pillow reads, " in found["error"]["where"]
    assert [name for name, error in errors.items() if error is None] == [
        *("a.png", "c.jpg", "é.png", "d.png")
    ]
    printed = tokexport(*given, "--csv", "-")
    assert printed.code == 2
    rows = list(csv.DictReader(io.StringIO(printed.stdout)))
    assert sum(row["error"] != "" for row in rows) == 3
    assert "3 of 7" in printed.stderr


def test_names_and_steps_of_the_user(bundle: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "names").write_text("\n".join("abcdef"))
    given = ["run", bundle, photos / "a.png", "--top", "6", "--json"]
    found = tokexport(*given, "--labels", tmp_path / "names").json["pictures"][0]["classes"]
    assert {one["label"]: one["index"] for one in found} == dict(
        zip("abcdef", range(6), strict=True)
    )
    other = tokexport(*given, "--preprocess", "mean=none").json["pictures"][0]["classes"]
    assert [one["score"] for one in other] != [one["score"] for one in found]
    (tmp_path / "names").write_text("a\nb")
    answer = tokexport(*given[:-1], "--labels", tmp_path / "names")
    refusal(answer, 2, tmp_path, "2 labels, and the model has 6 classes")
    answer = tokexport(*given[:-1], "--preprocess", "size=9,mean=none")
    refusal(answer, 2, tmp_path, "become 9 × 9")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "Nothing says what the bundle runs on."),
        (["--inputs", "x.npz"], "Nothing says what the bundle runs on."),
        (["--inputs", "x.npz", "--output", "y.npz", "--top", "3"], "--top and --csv are of"),
        (["a.png", "--output", "y.npz"], "do not go with pictures"),
        (["a.png", "--samples", "3"], "do not go with pictures"),
        (["a.png", "--top", "0"], "--top is 0."),
        (["a.png", "--threads", "0"], "--threads is 0."),
        (["a.png", "--preprocess", "size=8"], "says no mean"),
        (["."], "The folder holds no pictures."),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], said: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refusal(tokexport("run", bundle, *options), 2, tmp_path, said)


def test_json_and_csv_do_not_share_standard_output(bundle: Path, photos: Path) -> None:
    found = tokexport("run", bundle, photos, "--csv", "-", "--json").json
    assert "both print to standard output" in found["error"]["what"]


def test_what_is_no_classifier_is_refused(
    bundle: Path, compiled: Compiled, photos: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"scores": None}))
    answer = tokexport("run", copy, photos)
    refusal(answer, 2, tmp_path, "is no classifier", "It gives output float32 (2, 6)")
    (copy / "manifest.json").write_text(json.dumps(manifest | {"preprocessing": None}))
    refusal(tokexport("run", copy, photos), 2, tmp_path, "Nothing says how", "--preprocess")
    assert tokexport("run", copy, photos, "--preprocess", STEPS, "--json").code == 0
    answer = tokexport("run", compiled.bundle, photos)
    refusal(answer, 2, tmp_path, "Nothing says how a picture becomes")
