"""Loads the service of ``examples/serve`` on loopback, and holds every answer to the bundle's own.

    python ci/serve_load.py vit-ort                  5,000 requests over 32 connections
    python ci/serve_load.py vit-ort --requests 20000 --json

Two in five requests are pictures (JPEG and PNG, of several sizes), two are arrays of one to six
samples, one is broken in a way of its own. What each has to be answered was found before by the
bundle alone: the same classes, the same outputs within its gate, the same refusal. Behind the
first tenth the memory of the service is read, and at the end again.

Then it is stopped while requests come in: it has to end with exit code 0, each request that it took
has to be answered whole, and none may be answered otherwise than before. Exit code 1: an answer
differed, a request failed, or the memory grew by more than is allowed.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx2
import numpy as np
from PIL import Image

from tokexport.runtimes import BundleRunner, load
from tokexport.runtimes.pictures import Classifier, decode
from tokexport.runtimes.pictures.classification import probabilities
from tokexport.runtimes.tolerances.neighbourhoods import within_local_floor

ROOT = Path(__file__).parents[1]
NPY, NPZ, JPEG, PNG = "application/x-npy", "application/x-npz", "image/jpeg", "image/png"
SEED = 0
KINDS = 24
#: How far a score may be from that of the bundle alone, where the batch is another.
SCORE = 1e-4
_MOST_MESSAGES = 5


@dataclass(frozen=True)
class Asked:
    """A request, and what has to come back.

    Attributes:
        path: Where it is sent.
        kind: Its content type.
        body: Its body.
        status: The status that it has to get.
        right: Says of an answer of that status what is wrong with it; '' where it is right.
    """

    path: str
    kind: str
    body: bytes
    status: int
    right: Callable[[bytes], str]


@dataclass
class Loaded:
    """What a load found.

    Attributes:
        requests: How many were answered before the stop, by status.
        wrong: How many answers were not those of the bundle alone.
        failed: How many requests got no whole answer before the stop.
        messages: The first of both.
        seconds: How long the load took.
        per_second: Requests a second.
        p50_ms: The median of the latency; ``p99_ms`` its 99th percentile.
        rss_mib: The memory of the service behind the first tenth, and at the end.
        mean_batch: The mean number of requests in a run, as the service counts them.
        stopped: While it stopped: the requests that received an answer, that were refused before
            they got one, and whose answer was torn; the requests ``before``, and in all ``taken``
            and ``answered``, as the service counts them; and its ``exit`` code.
    """

    requests: dict[int, int] = field(default_factory=dict)
    wrong: int = 0
    failed: int = 0
    messages: list[str] = field(default_factory=list)
    seconds: float = 0.0
    per_second: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    rss_mib: tuple[float, float] = (0.0, 0.0)
    mean_batch: float = 0.0
    stopped: dict[str, int] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        """Whether nothing was wrong, failed or lost."""
        stop = self.stopped
        whole = stop["taken"] == stop["answered"] == stop["before"] + stop["received"]
        return whole and not (self.wrong or self.failed or stop["torn"] or stop["exit"])


def main() -> int:
    """Loads the service, prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--allowed-mib", type=float, default=32, help="By which it may grow.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = loaded(options.bundle, options.requests, options.connections)
    grown = found.rss_mib[1] - found.rss_mib[0]
    if options.json:
        print(json.dumps(asdict(found), indent=2))
    else:
        for name, value in asdict(found).items():
            print(f"{name}: {value}")
    return 0 if found.right and grown <= options.allowed_mib else 1


def loaded(bundle: Path, requests: int, connections: int) -> Loaded:
    """Starts the service, loads it, and stops it under load."""
    with load(bundle, threads=1) as runner:
        asked = [*pictures(runner), *arrays(runner), *broken(runner)]
    found = Loaded()
    with service(bundle) as (process, address):
        asyncio.run(_load(found, asked, requests, connections, process, address))
        said = process.communicate(timeout=60)[1]
    found.stopped["exit"] = process.returncode
    taken, answered = re.findall(r"(\d+) requests were taken, and (\d+) answered", said)[0]
    found.stopped |= {"taken": int(taken), "answered": int(answered)}
    return found


@contextmanager
def service(bundle: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Starts the service on a free port; yields its process and address once it listens."""
    path = os.pathsep.join([str(ROOT / "examples"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "error", "-m", "serve", str(bundle), "--port", "0"]
    process = subprocess.Popen(
        [*command, *options],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, _address(process)
    finally:
        process.kill()
        process.communicate()


def _address(process: subprocess.Popen[str]) -> str:
    """Reads where the service listens."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if found := re.search(r"running on (http://\S+)", line):
            return found[1]
    raise SystemExit(f"The service did not start:\n{said}")


async def _load(
    found: Loaded,
    asked: Sequence[Asked],
    requests: int,
    connections: int,
    process: subprocess.Popen[str],
    address: str,
) -> None:
    order = random.Random(SEED)
    left = [order.choice(asked) for _ in range(requests)]
    statuses: Counter[int] = Counter()
    times: list[float] = []
    ending, stopping = asyncio.Event(), asyncio.Event()
    after = Counter(received=0, refused=0, torn=0)

    async def ask(client: httpx2.AsyncClient, one: Asked) -> None:
        begun = time.perf_counter()
        answer = None
        try:
            request = client.build_request(
                "POST", one.path, content=one.body, headers={"Content-Type": one.kind}
            )
            answer = await client.send(request, stream=True)
            body = await answer.aread()
        except httpx2.TransportError as error:
            if stopping.is_set():  # closed before it answered anything, or in the middle
                after["refused" if answer is None else "torn"] += 1
                return
            found.failed += 1
            found.messages.append(f"{one.path}: {error!r}")
            return
        if ending.is_set():
            after["received"] += 1
        else:
            times.append(time.perf_counter() - begun)
            statuses[answer.status_code] += 1
        why = one.right(body) if answer.status_code == one.status else body.decode("latin-1")
        if why:
            found.wrong += 1
            found.messages.append(f"{one.path} {answer.status_code}, not {one.status}: {why:.200}")

    async def work(client: httpx2.AsyncClient, until: Callable[[], bool]) -> None:
        while left and not until():
            await ask(client, left.pop())

    async def together(client: httpx2.AsyncClient, until: Callable[[], bool]) -> None:
        await asyncio.gather(*(work(client, until) for _ in range(connections)))

    limits = httpx2.Limits(max_connections=connections)
    async with httpx2.AsyncClient(base_url=address, limits=limits, timeout=60) as client:
        begun = time.perf_counter()
        await together(client, lambda: len(left) <= 0.9 * requests)
        early = resident_mib(process.pid)
        await together(client, lambda: False)
        found.seconds = round(time.perf_counter() - begun, 2)
        found.rss_mib = early, resident_mib(process.pid)
        counted = (await client.get("/metrics")).text
        sums = [
            re.search(rf"serve_run_requests_{name} (\S+)", counted) for name in ("sum", "count")
        ]
        whole, runs = (float(one[1]) if one else 0.0 for one in sums)
        found.mean_batch = round(whole / max(runs, 1), 2)

        # The request of this page is one more.
        before = 1 + sum(map(int, re.findall(r"^serve_requests_total\S* (\d+)", counted, re.M)))

        ending.set()
        left += [order.choice(asked) for _ in range(20 * connections)]
        under_load = asyncio.create_task(together(client, lambda: False))
        await asyncio.sleep(0.3)
        stopping.set()
        process.send_signal(signal.SIGTERM)
        await under_load
    found.messages = found.messages[:_MOST_MESSAGES]
    found.requests = dict(sorted(statuses.items()))
    found.per_second = round(len(times) / found.seconds, 1)
    ordered = sorted(times)
    found.p50_ms = round(1e3 * statistics.median(ordered), 2)
    found.p99_ms = round(1e3 * ordered[int(0.99 * len(ordered))], 2)
    found.stopped = dict(after) | {"before": before}


def counter(page: str, name: str) -> float:
    """Returns a number of a page of metrics; 0 where it is not there."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    return float(found[1]) if found else 0.0


def resident_mib(process: int) -> float:
    """Returns the resident memory of a process, in MiB."""
    pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def pictures(runner: BundleRunner) -> Iterator[Asked]:
    """Yields pictures, whose classes the bundle alone has found."""
    classifier, generator = Classifier(runner), np.random.default_rng(SEED)
    assert runner.manifest is not None
    assert runner.manifest.scores is not None
    scores = runner.manifest.scores
    for number in range(KINDS):
        height, width = generator.integers(16, 400, 2)
        coarse = generator.integers(0, 256, (5, 4, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((int(width), int(height)), Image.Resampling.BICUBIC)
        kind = JPEG if number % 2 else PNG
        body = encoded(image, kind)
        outputs = runner.run(classifier.prepared(decode(body).pixels))
        (classes,) = classifier.ranked(outputs)
        values = outputs[scores.output][0].astype(np.float64)
        every = probabilities(values) if scores.form == "logits" else values
        yield Asked("/classify", kind, body, 200, _classes(every, len(classes)))


def _classes(scores: np.ndarray, count: int) -> Callable[[bytes], str]:
    """Returns what holds an answer to the scores of all classes."""
    highest = np.sort(scores)[::-1][:count]

    def right(body: bytes) -> str:
        classes = json.loads(body)["classes"]
        found = np.array([one["score"] for one in classes])
        own = scores[[one["index"] for one in classes]]
        if found.shape == highest.shape and len({one["index"] for one in classes}) == count:
            far = max(np.abs(found - own).max(), np.abs(found - highest).max())
            return "" if far <= SCORE * highest[0] else f"scores are off by {far}"
        return f"{len(classes)} classes"

    return right


def arrays(runner: BundleRunner) -> Iterator[Asked]:
    """Yields arrays of several samples, whose outputs the bundle alone has found."""
    generator = np.random.default_rng(SEED)
    (spec,) = runner.inputs
    for number in range(KINDS):
        array = generator.standard_normal((1 + number % 6, *spec.shape[1:]), dtype=np.float32)
        wanted = runner.run({spec.name: array})
        body, kind = (npy(array), NPY) if number % 2 else (npz({spec.name: array}), NPZ)
        yield Asked("/run", kind, body, 200, _outputs(runner, wanted))


def _outputs(runner: BundleRunner, wanted: dict[str, np.ndarray]) -> Callable[[bytes], str]:
    """Returns what holds an answer to outputs, each within the gate of the bundle."""
    assert runner.manifest is not None
    floors = {name: gate["local_tolerance"] for name, gate in runner.manifest.gates.items()}

    def right(body: bytes) -> str:
        with np.load(io.BytesIO(body)) as found:
            if set(found.files) != set(wanted):
                return f"outputs {found.files}"
            for name, value in wanted.items():
                if found[name].shape != value.shape or found[name].dtype != value.dtype:
                    return f"{name} has another shape"
                if not within_local_floor(value, found[name], floors[name]):
                    return f"{name} is off by {np.abs(found[name] - value).max()}"
        return ""

    return right


def broken(runner: BundleRunner) -> Iterator[Asked]:
    """Yields requests that are to be refused, each with a word of the error."""
    (spec,) = runner.inputs
    good = np.zeros((2, *spec.shape[1:]), np.float32)
    holds_nan = good.copy()
    holds_nan[1].flat[7] = np.nan
    picture = encoded(Image.new("RGB", (64, 48), (9, 90, 200)), JPEG)
    objects = io.BytesIO()
    np.save(objects, np.array([{}], dtype=object))
    for path, kind, body, status, word in (
        ("/classify", JPEG, picture[: len(picture) // 2], 422, "damaged"),
        ("/classify", PNG, picture, 422, "no image/png"),
        ("/classify", JPEG, b"", 422, "no image/jpeg"),
        ("/classify", "image/gif", b"GIF89a", 415, "image/gif"),
        ("/run", NPY, npy(holds_nan), 422, "NaN"),
        ("/run", NPY, npy(good[..., 1:]), 422, "shape"),
        ("/run", NPY, npy(good.astype(np.float64)), 422, "float64"),
        ("/run", NPY, npy(good)[:-9], 422, "bytes are there"),
        ("/run", NPY, npy(good[:0]), 422, "shape"),
        ("/run", NPY, objects.getvalue(), 422, "python objects"),
        ("/run", NPZ, npz({"another": good}), 422, "unknown another"),
        ("/run", "text/plain", b"1 2 3", 415, "text/plain"),
    ):
        yield Asked(path, kind, body, status, _says(word))


def _says(word: str) -> Callable[[bytes], str]:
    def right(body: bytes) -> str:
        said = json.loads(body)["error"]
        return "" if word in said and "Traceback" not in said else said

    return right


def encoded(image: Image.Image, kind: str) -> bytes:
    """Returns the file of an image."""
    file = io.BytesIO()
    image.save(file, "JPEG" if kind == JPEG else "PNG")
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    """Returns the .npy of an array."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    """Returns the .npz of arrays."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(main())
