"""The service: its routes, its limits, and what it says of errors.

Nothing here holds the event loop up: bodies are decoded in threads, and the bundle runs in one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.batching import Batcher
from serve.bodies import ARRAYS, NPZ, PICTURES, arrays_of, as_npz, picture_of
from serve.metrics import Counted, Metrics
from tokexport.runtimes import BundleRunner
from tokexport.runtimes.errors import (
    InputMismatchError,
    PictureError,
    PreprocessingError,
    RuntimesError,
)
from tokexport.runtimes.pictures import Classifier

#: Errors that are the client's: what it sent does not fit.
_UNFIT = (InputMismatchError, PictureError, PreprocessingError)
_LATER = {"Retry-After": "1"}
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Attributes:
        body: The most bytes of a body.
        pixels: The most pixels of a picture; each takes three bytes, and some more meanwhile.
        waiting: The most requests at once: each may hold a body.
        seconds: How long a body may take to come, and its answer after it.
        wait_s: How long a request waits for others to share its run.
        decoding: How many bodies are decoded at once.
    """

    body: int = 16 << 20
    pixels: int = 1 << 25
    waiting: int = 64
    seconds: float = 30.0
    wait_s: float = 0.002
    decoding: int = 2


class Service:
    """Answers requests with one bundle.

    Args:
        runner: The loaded bundle, warmed up.
        limits: What a client may ask for.
        top: How many classes a picture gets.
    """

    def __init__(self, runner: BundleRunner, limits: Limits, top: int = 5) -> None:
        self._runner, self._limits = runner, limits
        self._classifier: Classifier | RuntimesError
        try:
            self._classifier = Classifier(runner, top)
        except RuntimesError as error:  # the bundle classifies no pictures
            self._classifier = error
        self._metrics = Metrics()
        self._decoding = ThreadPoolExecutor(limits.decoding, "decode")
        self._inside = 0

    def app(self) -> Starlette:
        """Returns the application, to be run by an ASGI server."""
        routes = [
            Route("/classify", self._limited(self._classify), methods=["POST"]),
            Route("/run", self._limited(self._run), methods=["POST"]),
            Route("/model", self._model),
            *(Route(f"/health/{asked}", _up) for asked in ("live", "ready")),
            Route("/metrics", self._metrics.page),
        ]
        paths = frozenset(route.path for route in routes)
        return Starlette(
            routes=routes,
            middleware=[Middleware(Counted, metrics=self._metrics, paths=paths)],
            exception_handlers={
                RuntimesError: _refused,
                HTTPException: _refused,
                ClientDisconnect: _gone,
                Exception: _failed,
            },
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Runs batches, and ends what was begun."""
        self._batcher = Batcher(self._runner, self._limits.wait_s, self._metrics.seen)
        working = asyncio.create_task(self._batcher.work())
        yield
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        self._batcher.close()
        self._decoding.shutdown()
        logging.getLogger("uvicorn.error").info(self._metrics.summary())

    def _limited(
        self, work: Callable[[bytes, str], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Holds a route to the limits; the work gets the body and its content type."""

        async def endpoint(request: Request) -> Response:
            if self._inside >= self._limits.waiting:
                raise HTTPException(503, f"{self._inside} requests wait already.", _LATER)
            self._inside += 1
            self._metrics.inside.set(self._inside)
            try:
                kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
                body = await self._body(request)
                async with asyncio.timeout(self._limits.seconds):
                    return await work(body, kind)
            except TimeoutError as error:
                said = f"There was no answer within {self._limits.seconds:g} s."
                raise HTTPException(503, said, _LATER) from error
            finally:
                self._inside -= 1
                self._metrics.inside.set(self._inside)

        return endpoint

    async def _body(self, request: Request) -> bytes:
        """Reads a body; one that is too large, or too slow, is left."""
        most = self._limits.body
        too_large = HTTPException(413, f"The body is larger than {most:,} bytes.")
        if int(request.headers.get("content-length", 0)) > most:
            raise too_large
        chunks, size = [], 0
        try:
            async with asyncio.timeout(self._limits.seconds):
                async for chunk in request.stream():
                    chunks.append(chunk)
                    size += len(chunk)
                    if size > most:
                        raise too_large
        except TimeoutError as error:
            said = f"The body did not come within {self._limits.seconds:g} s."
            raise HTTPException(408, said) from error
        return await self._in_thread(b"".join, chunks)

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoding, partial(function, *arguments))

    async def _classify(self, body: bytes, kind: str) -> Response:
        """Answers a picture with its highest classes."""
        _require(kind, tuple(PICTURES))
        classifier = self._classifier
        if isinstance(classifier, RuntimesError):
            raise HTTPException(404, f"This bundle classifies no pictures: {classifier.what}")
        picture = await self._in_thread(picture_of, body, kind, self._limits.pixels)
        arrays = await self._in_thread(classifier.prepared, picture.pixels)
        outputs = await self._batcher.answer(arrays)
        (classes,) = await self._in_thread(classifier.ranked, outputs)
        found = {"form": classifier.form, "classes": [asdict(one) for one in classes]}
        return JSONResponse(found | {"notes": picture.notes})

    async def _run(self, body: bytes, kind: str) -> Response:
        """Answers arrays with the outputs of the model."""
        _require(kind, ARRAYS)
        arrays = await self._in_thread(arrays_of, body, kind, self._runner)
        outputs = await self._batcher.answer(arrays)
        return Response(await self._in_thread(as_npz, outputs), media_type=NPZ)

    async def _model(self, request: Request) -> Response:
        """Answers with what the model takes and gives."""
        runner = self._runner
        found: dict[str, object] = {"batches": runner.batches, "runtime": runner.runtime.flavour}
        for name, specs in (("inputs", runner.inputs), ("outputs", runner.outputs)):
            any_number = [None] if runner.shares_runs else []
            shapes = ([*any_number, *one.shape[len(any_number) :]] for one in specs)
            found[name] = [
                {**asdict(one), "shape": shape} for one, shape in zip(specs, shapes, strict=True)
            ]
        return JSONResponse(found)


async def _up(request: Request) -> Response:
    """Answers as long as the process does: it listens once the bundle is loaded and warm."""
    return JSONResponse({"state": "ready"})


def _require(kind: str, known: tuple[str, ...]) -> None:
    if kind not in known:
        said = f"The content type is {kind or 'not given'}; send {' or '.join(known)}."
        raise HTTPException(415, said, {"Accept": ", ".join(known)})


async def _refused(request: Request, error: Exception) -> Response:
    """Answers an error that is known."""
    if isinstance(error, HTTPException):
        found = {"error": error.detail}
        return JSONResponse(found, error.status_code, error.headers)
    assert isinstance(error, RuntimesError)
    found = {"error": error.what, "where": error.where, "fix": error.fix}
    shown = {name: value for name, value in found.items() if value}
    return JSONResponse(shown, 422 if isinstance(error, _UNFIT) else 500)


async def _gone(request: Request, error: Exception) -> Response:
    """Answers nobody: the client closed the connection before its body was whole."""
    return Response(status_code=400)


async def _failed(request: Request, error: Exception) -> Response:
    """Answers what nobody expected; the server logs the traceback."""
    return JSONResponse({"error": "The service failed; its log says how."}, 500)
