"""Runs a model compiled by OpenVINO, from any thread."""

from __future__ import annotations

import threading
from typing import Any

from tokexport.runtimes.arrays import Array

_MOST_IDLE = 8  # requests to keep: to make one takes 15 µs, and it holds inputs and outputs


class Requests:
    """The requests to run a compiled model, of which each takes one run at a time.

    Threads that share one by a lock are served unevenly: of eight, the slowest hundredth of the
    runs took five times as long as with a request each, which OpenVINO itself puts in a row.

    Args:
        compiled: An ``openvino.CompiledModel``.
    """

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._idle = [compiled.create_infer_request()]
        self._writing: list[Any] = []
        # Starting a run and waiting for it takes 10 to 60 µs more than `infer`. But with one thread
        # of its own, `infer` reports no failure, and returns uninitialised memory then; and it
        # keeps state of each calling thread, whose end then damages memory.
        self._infers = int(compiled.get_property("INFERENCE_NUM_THREADS")) > 1

    def run(self, arrays: list[Array]) -> Any:
        """Returns copies of the outputs, by position."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        if self._infers and threading.current_thread() is threading.main_thread():
            results = request.infer(arrays, share_outputs=False)
        else:
            request.start_async(arrays)
            request.wait()
            results = request.results
        # One whose run failed or was interrupted is dropped.
        if len(self._idle) < _MOST_IDLE:
            self._idle.append(request)
        return results

    def run_into(self, arrays: list[Array], outputs: list[Any]) -> None:
        """Runs, and has OpenVINO write into memory of the caller's.

        Its requests are others than those of ``run``: what one was bound to, it stays bound to.

        Args:
            arrays: The inputs, by position.
            outputs: An ``openvino.Tensor`` over the memory of each output, by position.
        """
        try:
            request = self._writing.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        for index, tensor in enumerate(outputs):
            request.set_output_tensor(index, tensor)
        request.start_async(arrays)
        request.wait()
        if len(self._writing) < _MOST_IDLE:
            self._writing.append(request)

    def profiled(self, arrays: list[Array]) -> list[tuple[str, float]]:
        """Runs once, and returns the milliseconds of every node that ran, in order.

        The model has to be compiled to be timed.
        """
        request = self._compiled.create_infer_request()
        request.start_async(arrays)
        request.wait()
        return [
            (node.node_name, node.real_time.total_seconds() * 1e3)
            for node in request.profiling_info
            if node.status == node.Status.EXECUTED
        ]
