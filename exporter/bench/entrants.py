"""Prepares every candidate of a measurement, and compares it with eager before it is timed.

A candidate that cannot be prepared says why; one that differs from eager says by how much, and is
timed all the same.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tokexport.exporter.backends.known import BACKENDS, REFERENCE
from tokexport.exporter.bench.candidate import Candidate, Entrant, Way
from tokexport.exporter.bench.config import BenchConfig
from tokexport.exporter.bench.floor import floor_model
from tokexport.exporter.bench.plain_export import export_plainly, reason_of
from tokexport.exporter.bench.subject import GraphFacts, Subject
from tokexport.exporter.build.onnx_file import save_onnx
from tokexport.exporter.compile import CompileResult, compile
from tokexport.exporter.eager.module_state import evaluation
from tokexport.exporter.eager.reference import tensors_of
from tokexport.exporter.exit_codes import ExitCode, exit_code_of
from tokexport.exporter.progress import Checklist
from tokexport.exporter.speed.against_eager import eager_at_its_best
from tokexport.exporter.speed.time_limits import time_limits
from tokexport.exporter.worker.openings import Opening
from tokexport.exporter.worker.runner import (
    WorkerRunner,
    convert_in_worker,
    here,
    optimise_in_worker,
)
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.bundle.runner import Runner
from tokexport.runtimes.cores.free_cores import allowed_cores
from tokexport.runtimes.errors import InputMismatchError
from tokexport.runtimes.loading import load
from tokexport.runtimes.signatures import held_to


class Entrants:
    """Makes the candidates of one batch size ready.

    Args:
        config: What was asked for.
        folder: Takes files meanwhile.
        stack: Closes every runner at its end.
        checklist: Shows what is made ready.
    """

    def __init__(
        self, config: BenchConfig, folder: Path, stack: ExitStack, checklist: Checklist
    ) -> None:
        self._config, self._folder = config, folder
        self._stack, self._checklist = stack, checklist
        before = torch.get_num_threads()
        self._threads = before if config.threads is None else config.threads
        stack.callback(torch.set_num_threads, before)

    def all(self, model: Subject, unreduced: Subject | None, facts: GraphFacts) -> list[Entrant]:
        """Returns every candidate, in the order of the table.

        Args:
            model: The model.
            unreduced: The model without its reduction, where that is known.
            facts: What the graph of the model says.
        """
        ours = list(self._ours(model, unreduced=False))
        eager, run_eager = self._eager(model)
        found = [eager, *self._compiled_by_torch(model, run_eager)]
        torch.set_num_threads(self._threads)
        found += [*self._plain(model, facts, unreduced=False), *ours]
        if unreduced is not None:
            ours = list(self._ours(unreduced, unreduced=True))
            found += [*self._plain(unreduced, facts, unreduced=True), *ours]
        return [*found, self._floor(facts)]

    def _eager(self, model: Subject) -> tuple[Entrant, Callable[[], object]]:
        with self._checklist.stage(Way.EAGER):
            self._stack.enter_context(evaluation(model.flat))
            tensors = tensors_of(next(iter(model.batches)))
            forms = eager_at_its_best(
                Way.EAGER, model.flat, tensors, self._threads, self._config.seed, time_limits()
            )
        (run,) = forms.values()
        run()
        return Entrant(Candidate(Way.EAGER), run, threads=torch.get_num_threads()), run

    def _compiled_by_torch(self, model: Subject, eager: Callable[[], object]) -> Iterator[Entrant]:
        """Compiles for as many threads as eager is the fastest with: they are fixed in its code."""
        if not self._config.torch_compile:
            return
        candidate = Candidate(Way.TORCH_COMPILE)
        first = tensors_of(next(iter(model.batches)))
        eager()
        threads = torch.get_num_threads()

        def answers() -> dict[str, Array]:
            rows = [compiled(*tensors_of(batch)) for batch in model.batches]
            names = tuple(model.expected)
            return {
                name: np.stack([row[i].numpy() for row in rows]) for i, name in enumerate(names)
            }

        def run() -> None:
            torch.set_num_threads(threads)
            compiled(*first)

        with self._checklist.stage(Way.TORCH_COMPILE):
            self._stack.callback(torch._dynamo.reset)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the compiler's own
                    compiled = torch.compile(model.flat)
                    found = answers()
            except Exception as error:  # what the compiler raises is what it answers
                yield Entrant(candidate, note=reason_of(error))
                return
            yield _held(Entrant(candidate, run, threads=threads), model, found)

    def _plain(self, model: Subject, facts: GraphFacts, *, unreduced: bool) -> Iterator[Entrant]:
        """Exports once, and gives the file to every runtime."""
        candidates = plain_candidates(self._config, unreduced=unreduced)
        folder = self._made("plain")
        path = folder / "model.onnx"
        with self._checklist.stage(f"{'unreduced: ' * unreduced}{Way.PLAIN}"):
            try:
                helped = export_plainly(model, path)
            except Exception as error:  # whatever torch raises is its refusal
                why = f"torch.onnx.export: {reason_of(error)}"
                yield from (Entrant(candidate, note=why) for candidate in candidates)
                return
        for candidate in candidates:
            with self._checklist.stage(candidate.name):
                entrant = self._opened(
                    candidate,
                    model,
                    partial(_open_plain, candidate, path, facts, self._config.threads),
                )
                yield replace(entrant, note=entrant.note or helped)
        shutil.rmtree(folder)

    def _ours(self, model: Subject, *, unreduced: bool) -> Iterator[Entrant]:
        for target in self._config.targets:
            for precision in self._config.precisions:
                candidate = Candidate(Way.OURS, target, precision, unreduced)
                with self._checklist.stage(candidate.name):
                    yield self._compiled_by_us(candidate, model)

    def _compiled_by_us(self, candidate: Candidate, model: Subject) -> Entrant:
        taken = BACKENDS[candidate.target].precisions
        if candidate.precision not in taken:
            return Entrant(
                candidate, note=f"skipped: the target '{candidate.target}' takes {', '.join(taken)}"
            )
        folder = self._made("ours")
        try:
            result = compile(
                model.source,
                target=candidate.target,
                output=folder / "bundle",
                inputs=model.config.inputs,
                preprocess=model.config.preprocess,
                labels=model.config.labels,
                samples=model.config.samples,
                input_shape=model.config.input_shape,
                batch=model.config.batch,
                seed=model.config.seed,
                constants=model.config.constants,
                precision=candidate.precision,
                threads=self._config.threads,
                require_run=True,
                timed=False,
                page=False,
            )
        except Exception as error:
            if exit_code_of(error) is ExitCode.INTERNAL:
                raise
            return Entrant(candidate, note=_said(error))
        threads = self._config.threads or allowed_cores()
        opened = partial(load, result.bundle, threads=threads)
        entrant = self._opened(candidate, model, opened)
        shutil.rmtree(folder)
        return _as_proven(entrant, result)

    def _floor(self, facts: GraphFacts) -> Entrant:
        candidate = Candidate(Way.FLOOR, "ort")
        if not facts.products:
            return Entrant(candidate, note=facts.why_not)
        with self._checklist.stage(Way.FLOOR):
            folder = self._made("floor")
            path = folder / "floor.onnx"
            model, arrays = floor_model(facts.products, self._config.seed)
            save_onnx(model, path)
            opening = Opening(path, threads=self._config.threads)
            runner = self._stack.enter_context(WorkerRunner(opening))
            runner.run(arrays)
            timed = here(runner)
            shutil.rmtree(folder)
            return Entrant(candidate, timed.bound(arrays), threads=_threads_of(timed))

    def _opened(
        self, candidate: Candidate, model: Subject, opened: Callable[[], Runner]
    ) -> Entrant:
        """Opens a runner, runs it on every batch and holds its answers to eager."""
        try:
            with held_to(None):  # a bundle of its own
                runner = self._stack.enter_context(opened())
            found = _answers(runner, model)
            run = here(runner).bound(named_arrays_of(runner, model, next(iter(model.batches))))
        except Exception as error:
            if candidate.way is Way.OURS and exit_code_of(error) is ExitCode.INTERNAL:
                raise
            return Entrant(candidate, note=_said(error))
        entrant = Entrant(candidate, run, threads=_threads_of(here(runner)))
        if len(found) != len(model.expected):
            return replace(
                entrant,
                error=float("inf"),
                wrong=True,
                note=f"{len(found)} outputs, eager gives {len(model.expected)}",
            )
        return _held(entrant, model, dict(zip(model.expected, found, strict=True)))

    def _made(self, name: str) -> Path:
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder


def _said(error: Exception) -> str:
    """Returns the note in place of times: what happened, and at which node if it is known."""
    what: str = getattr(error, "what", "") or reason_of(error)
    operator: str = getattr(error, "operator", "")
    if not operator or operator in what:
        return what
    return f"{what} Node {getattr(error, 'node', '')}, operator {operator}."


def plain_candidates(config: BenchConfig, *, unreduced: bool = False) -> list[Candidate]:
    """Returns how a plain export is run: on ONNX Runtime always, on other targets where asked to.

    On each target it runs in the precisions that were asked for and that it has, and in fp32 where
    it lacks one of them.
    """
    found = []
    for target in dict.fromkeys((REFERENCE.name, *config.targets)):
        if unreduced and target not in config.targets:
            continue
        asked = config.precisions if target in config.targets else ("fp32",)
        own = {plain_precision(target, precision): None for precision in asked}
        found += [Candidate(Way.PLAIN, target, precision, unreduced) for precision in own]
        if target == REFERENCE.name and target in config.targets and not unreduced:
            found.append(Candidate(Way.OPTIMIZER, target))
    return found


def plain_precision(target: str, precision: str) -> str:
    """Returns the precision of the plain export that a candidate is compared with."""
    return precision if precision in BACKENDS[target].plain_precisions else "fp32"


def _threads_of(runner: Runner) -> int | None:
    threads = runner.runtime.details.get("threads")
    return threads if isinstance(threads, int) else None


def _open_plain(candidate: Candidate, path: Path, facts: GraphFacts, threads: int | None) -> Runner:
    if candidate.way is Way.OPTIMIZER:
        output = path.with_name("optimised.onnx")
        optimise_in_worker(path, output, heads=facts.heads, hidden=facts.hidden)
        return WorkerRunner(Opening(output, threads=threads))
    backend = BACKENDS[candidate.target]
    if backend.runs_lowered:
        return WorkerRunner(Opening(path, threads=threads))
    converted = path.with_name(backend.artifact)
    if not converted.exists():
        convert_in_worker(path, converted)
    opening = Opening(converted, precision=candidate.precision, threads=threads)
    return WorkerRunner(opening, path)


def named_arrays_of(runner: Runner, model: Subject, batch: dict[str, Array]) -> dict[str, Array]:
    """Renames a batch's inputs to the runner's: an export may name them itself, in order."""
    own = [spec.name for spec in runner.inputs]
    if {*own} == {*batch}:
        return batch
    batch = batch | model.constants  # a plain export takes them as any other input
    if {*own} == {*batch}:
        return batch
    if len(own) != len(batch):
        raise InputMismatchError(f"It takes {len(own)} inputs, and the model {len(batch)}.")
    return {name: batch[one] for name, one in zip(own, model.names_as_called, strict=True)}


def _answers(runner: Runner, model: Subject) -> list[Array]:
    """Runs every batch; returns (batches, …) for each output of the runner."""
    rows = [
        list(runner.run(named_arrays_of(runner, model, batch)).values()) for batch in model.batches
    ]
    return [np.stack(parts) for parts in zip(*rows, strict=True)]


def _held(entrant: Entrant, model: Subject, found: dict[str, Array]) -> Entrant:
    """Returns a candidate with the distance of its outputs (batches, …) from eager."""
    judged = model.judged(found, entrant.candidate.precision)
    errors = [one.relative for one in judged.comparisons.values()]
    error = max(errors) if len(errors) == len(model.expected) else float("inf")
    return replace(entrant, error=error, wrong=not judged.passed, note=judged.detail)


def _as_proven(entrant: Entrant, result: CompileResult) -> Entrant:
    """Clears ``wrong`` where compile proved that the differences are near-ties."""
    if entrant.wrong and result.report.stages[-1].ties is not None:
        return replace(entrant, wrong=False, note="near-ties fell the other way, as compile proved")
    return entrant
