"""The service answers as its bundle does, alone and under load, and says what it refuses."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
import serve_load
from helpers.pages import blocks
from helpers.small_bundles import CLASSES, WIDTH, product_bundle
from models.tiny_vit import image, tiny_tome
from PIL import Image
from serve.__main__ import main
from serve.batching import Batcher

import tokexport
from tokexport.runtimes import load
from tokexport.runtimes.errors import InputMismatchError
from tokexport.runtimes.pictures import Classifier, decode

ROOT = Path(__file__).parents[2]
README = ROOT / "examples" / "serve" / "README.md"
LABELS = [f"class {number}" for number in range(10)]
SIDE = 48


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of pictures for 1 and for 4 samples."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    tokexport.compile(
        *(tiny_tome(), image(size=SIDE), "ort"),
        output=folder / "vit-ort",
        batch=(1, 4),
        labels=folder / "labels.txt",
        preprocess=f"size={SIDE},mean=half",
        timed=False,
        page=False,
    )
    return folder / "vit-ort"


def test_a_few_hundred_requests_over_many_connections(bundle: Path) -> None:
    found = serve_load.loaded(bundle, 300, 32)
    assert found.messages == []
    assert found.right, found
    assert sum(found.requests.values()) == 300
    assert set(found.requests) == {200, 415, 422}
    assert found.mean_batch > 1.5  # what waited shared runs
    assert found.stopped["received"] > 0  # it was stopped under load
    assert found.rss_mib[1] - found.rss_mib[0] < 64


@pytest.fixture(scope="module")
def limited(bundle: Path) -> Iterator[str]:
    """The address of a service that takes little."""
    options = ("--body", "40000", "--waiting", "2", "--seconds", "1", "--pixels", "10000")
    with serve_load.service(bundle, *options, "--top", "3") as (_, address):
        yield address


def test_a_picture_is_answered_as_the_bundle_does(bundle: Path, limited: str) -> None:
    body = serve_load.encoded(Image.linear_gradient("L").resize((90, 70)), serve_load.PNG)
    headers = {"Content-Type": "image/png; charset=binary"}
    answer = httpx2.post(f"{limited}/classify", content=body, headers=headers)
    with load(bundle) as runner:
        classifier = Classifier(runner, 3)
        (wanted,) = classifier.ranked(runner.run(classifier.prepared(decode(body).pixels)))
    assert answer.status_code == 200
    found = answer.json()
    model = httpx2.get(f"{limited}/model").json()
    assert model["inputs"] == [{"name": "x", "shape": [None, 3, SIDE, SIDE], "dtype": "float32"}]
    assert model["batches"] == [1, 4]
    assert found["form"] == "probability"
    assert found["notes"] == []
    assert [one["label"] for one in found["classes"]] == [one.label for one in wanted]
    assert [one["score"] for one in found["classes"]] == pytest.approx(
        [one.score for one in wanted], rel=1e-5
    )


@pytest.mark.parametrize(
    ("method", "path", "kind", "body", "status", "said"),
    [
        ("GET", "/nowhere", "", b"", 404, "Not Found"),
        ("GET", "/run", "", b"", 405, "Method Not Allowed"),
        ("POST", "/run", "", b"", 415, "not given; send application/x-npy or application/x-npz"),
        ("POST", "/classify", "image/webp", b"RIFF", 415, "send image/jpeg or image/png"),
        ("POST", "/run", serve_load.NPY, bytes(40_001), 413, "larger than 40,000 bytes"),
        ("POST", "/run", serve_load.NPY, b"", 422, "Cannot read the body"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(
    limited: str, method: str, path: str, kind: str, body: bytes, status: int, said: str
) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = httpx2.request(method, limited + path, content=body, headers=headers)
    assert answer.status_code == status
    assert said in answer.json()["error"]


def test_a_body_without_a_length_is_counted_as_it_comes(limited: str) -> None:
    headers = {"Content-Type": serve_load.NPY}
    chunks = (bytes(9_000) for _ in range(5))
    answer = httpx2.post(f"{limited}/run", content=chunks, headers=headers)
    assert answer.status_code == 413
    for asked in ("live", "ready"):
        assert httpx2.get(f"{limited}/health/{asked}").json() == {"state": "ready"}


def test_a_picture_of_too_many_pixels_is_refused(limited: str) -> None:
    body = serve_load.encoded(Image.new("RGB", (101, 100)), serve_load.PNG)
    headers = {"Content-Type": "image/png"}
    answer = httpx2.post(f"{limited}/classify", content=body, headers=headers)
    assert answer.status_code == 422
    assert "101 × 100 pixels" in answer.json()["error"]
    assert answer.json()["fix"]


def half_sent(address: str, body: bytes, sent: int) -> socket.socket:
    """Connects, and sends the beginning of a request."""
    place = urlsplit(address)
    assert place.hostname is not None
    assert place.port is not None
    connection = socket.create_connection((place.hostname, place.port), timeout=60)
    head = f"POST /run HTTP/1.1\r\nHost: x\r\nContent-Type: {serve_load.NPY}\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:sent])
    return connection


def test_more_than_may_wait_are_sent_away_and_slow_bodies_given_up(limited: str) -> None:
    body = serve_load.npy(np.zeros((1, 3, SIDE, SIDE), np.float32))
    slow = [half_sent(limited, body, 1000) for _ in range(2)]
    while serve_load.counter(httpx2.get(f"{limited}/metrics").text, "serve_requests_inside") < 2:
        time.sleep(0.01)
    headers = {"Content-Type": serve_load.NPY}
    answer = httpx2.post(f"{limited}/run", content=body, headers=headers)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert "2 requests wait already" in answer.json()["error"]
    for one in slow:
        with one:
            assert one.recv(1000).startswith(b"HTTP/1.1 408 ")
    assert httpx2.post(f"{limited}/run", content=body, headers=headers).status_code == 200


def test_metrics_count_what_was_answered(limited: str) -> None:
    httpx2.get(f"{limited}/invented")
    page = httpx2.get(f"{limited}/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert serve_load.counter(page.text, "serve_run_seconds_count") >= 1
    assert 'serve_requests_total{path="other",status="404"}' in page.text
    assert "invented" not in page.text
    assert serve_load.counter(page.text, "process_resident_memory_bytes") > 1e6


def test_a_request_on_its_way_is_answered_when_it_stops(bundle: Path) -> None:
    body = serve_load.npy(np.zeros((2, 3, SIDE, SIDE), np.float32))
    with serve_load.service(bundle) as (process, address):
        with half_sent(address, body, 1000) as connection:
            inside = "serve_requests_inside"
            while serve_load.counter(httpx2.get(f"{address}/metrics").text, inside) < 1:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            while refuses(address) is False:
                time.sleep(0.01)
            connection.sendall(body[1000:])
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        said = process.communicate(timeout=60)[1]
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert process.returncode == 0
    assert "Traceback" not in said


def refuses(address: str) -> bool:
    """Whether nobody listens there any more."""
    try:
        httpx2.get(f"{address}/health/live")
    except httpx2.TransportError:
        return True
    return False


def test_what_is_no_bundle_is_said(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "serve", tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "examples"), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_a_port_that_cannot_be_is_misuse(
    port: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["serve", "bundle", f"--port={port}"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "argument --port: " in capsys.readouterr().err


def test_a_model_of_two_inputs_takes_an_npz(tmp_path: Path) -> None:
    made = product_bundle(tmp_path / "bundle", 2)
    x = np.ones((2, WIDTH), np.float32)
    arrays = {"x": x, "shift": np.array([[1], [2]])}
    with load(made) as runner:
        wanted = runner.run(arrays)["y"]
    with serve_load.service(made) as (_, address):
        headers = {"Content-Type": serve_load.NPZ}
        answer = httpx2.post(f"{address}/run", content=serve_load.npz(arrays), headers=headers)
        alone = httpx2.post(
            f"{address}/run", content=serve_load.npy(x), headers={"Content-Type": serve_load.NPY}
        )
        picture = httpx2.post(
            f"{address}/classify", content=b"", headers={"Content-Type": "image/png"}
        )
        model = httpx2.get(f"{address}/model").json()
    (tmp_path / "found.npz").write_bytes(answer.content)
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_array_equal(found["y"], wanted)
    assert alone.status_code == 422
    assert "2 inputs" in alone.json()["error"]
    assert picture.status_code == 404
    assert "no classifier" in picture.json()["error"]
    assert model["inputs"][0] == {"name": "x", "shape": [None, WIDTH], "dtype": "float32"}
    assert model["outputs"][0]["shape"] == [None, CLASSES]


def test_one_that_is_refused_spoils_no_run(bundle: Path) -> None:
    runs: list[int] = []
    generator = np.random.default_rng(0)
    arrays = [generator.standard_normal((1, 3, SIDE, SIDE), dtype=np.float32) for _ in range(4)]
    arrays[2][0, 0, 0, 0] = np.nan

    async def answers() -> list[object]:
        batcher = Batcher(runner, 5.0, lambda count, seconds: runs.append(count))
        working = asyncio.create_task(batcher.work())
        gone = asyncio.create_task(batcher.answer({"x": arrays[0]}))
        await asyncio.sleep(0)
        gone.cancel()  # takes no place in a run
        asked = (batcher.answer({"x": one}) for one in arrays)
        found = await asyncio.gather(*asked, return_exceptions=True)
        working.cancel()
        batcher.close()
        return list(found)

    with load(bundle, threads=1) as runner:
        assert runner.shares_runs
        found = asyncio.run(answers())
        assert sum(runs) == 4
        assert isinstance(found.pop(2), InputMismatchError)
        wanted = [runner.run({"x": one})["output"] for one in (*arrays[:2], arrays[3])]
    for one, right in zip(found, wanted, strict=True):
        assert isinstance(one, dict)
        np.testing.assert_array_equal(one["output"], right)


def test_a_failure_of_a_shared_run_ends_nothing(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a run raises, each request is tried by itself, and the next are run."""
    one = {"x": np.ones((1, 3, SIDE, SIDE), np.float32)}

    async def answers() -> list[object]:
        batcher = Batcher(runner, 0.01, lambda count, seconds: None)
        working = asyncio.create_task(batcher.work())
        found: list[object] = []
        for _ in range(2):
            asked = (batcher.answer(one) for _ in range(3))
            found += await asyncio.gather(*asked, return_exceptions=True)
        working.cancel()
        batcher.close()
        return found

    with load(bundle, threads=1) as runner:
        right, run = runner.run(one), runner.run
        calls = itertools.count()

        def fails(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            if len(arrays["x"]) > 1 or next(calls) == 1:
                raise MemoryError("There is not enough memory.")
            return run(arrays)

        monkeypatch.setattr(runner, "run", fails)
        found = asyncio.run(answers())
    assert isinstance(found.pop(1), MemoryError)
    assert len(found) == 5
    for answer in found:
        assert isinstance(answer, dict)
        np.testing.assert_array_equal(answer["output"], right["output"])


def test_the_commands_of_its_readme_run(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vit-ort").symlink_to(bundle)
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "photo.jpg")
    np.save(tmp_path / "samples.npy", np.zeros((6, 3, SIDE, SIDE), np.float32))
    start, *asks = [one for one in blocks(README) if one.language == "bash"]
    assert start.code.splitlines()[-1] == "PYTHONPATH=examples python -m serve vit-ort --port 8000"
    printed = []
    with serve_load.service(bundle) as (_, address):
        for block in asks:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.code.replace("localhost:8000", address)],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            printed.append(done.stdout)
    shown = [one for one in blocks(README) if one.language == "json"]
    found, wanted = json.loads(printed[0]), json.loads(shown[0].code)
    assert found.keys() == wanted.keys()
    assert found["classes"][0].keys() == wanted["classes"][0].keys()
    with np.load(tmp_path / "outputs.npz") as outputs:
        assert outputs["output"].shape == (6, 10)
    assert any("serve_requests_total" in one for one in printed)
