"""Chooses the form of each token operator of a model by measurement.

What is fastest depends on the shapes, so on the layer and the batch, and on runtime and processor:
every distinct kind of call in the lowered graph is timed in all its forms, in the target's runtime
on this machine (``trials``). The choice is remembered (``cache``) under all that it
depends on.
"""

from __future__ import annotations

import onnx_ir as ir

from tokexport.exporter.backends.backend import Backend
from tokexport.exporter.config import CompileConfig
from tokexport.exporter.system.machine import describe_machine
from tokexport.exporter.system.scratch import scratch_folder
from tokexport.exporter.tuning.cache import FormCache
from tokexport.exporter.tuning.choices import TunedForm, Tuning
from tokexport.exporter.tuning.trials import try_forms
from tokexport.graph_passes import pipelines
from tokexport.graph_passes.onnx_passes.every_target.choose_forms import Forms, TokenCall
from tokexport.graph_passes.ops.token_forms import candidates
from tokexport.graph_passes.pipelines import Arithmetic
from tokexport.runtimes.native_library import NO_KERNELS
from tokexport.runtimes.processor import usable_cores


def tune(emitted: ir.Model, config: CompileConfig, arithmetic: Arithmetic) -> tuple[Tuning, Forms]:
    """Times the forms of every kind of call that the lowered graph will hold.

    Args:
        emitted: The emitted model; it stays as it is.
        config: What was asked for.
        arithmetic: What the lowered graph computes in.

    Returns:
        The choices with their reasons, and the argument of ``ChooseForms``.

    Raises:
        tokexport.runtimes.errors.RuntimeMissingError: The target's runtime is not installed.
        UsageError: No folder for the cache is known.
    """
    backend = config.backend
    calls = pipelines.calls_to_choose(emitted.clone(), backend.lowering(arithmetic))
    cache = FormCache(environment(backend, config.precision, config.threads))
    kernels = backend.kernels().isa != NO_KERNELS
    warnings: dict[str, None] = {}
    forms: dict[TokenCall, TunedForm] = {}
    timed = 0
    for call in sorted(calls):
        names = candidates(call.operator, kernels=kernels and backend.has_kernel(call))
        found = cache.get(str(call), names)
        if found is None:
            with scratch_folder() as folder:
                trial = try_forms(call, names, backend, config.precision, folder, config.threads)
            for form, why in trial.refused.items():
                warnings[f"Form {form} of {call.operator} was left out: {why}"] = None
            if trial.chosen is None:
                continue
            found = trial.chosen
            cache.put(str(call), found)
            timed += 1
        forms[call] = found
    cache.save()
    tuning = Tuning(
        {str(call): found for call, found in forms.items()},
        {str(call): calls[call] for call in forms},
        timed,
        str(cache.path),
        (*cache.warnings, *warnings),
    )
    return tuning, {
        call: found.form for call, found in forms.items() if found.form != found.standard
    }


def environment(
    backend: Backend, precision: str, threads: int | None = None
) -> dict[str, str | int]:
    """Returns everything that the times depend on beside the call."""
    machine = describe_machine()
    return {
        "processor": machine["processor"],
        "threads": threads or usable_cores(),
        "target": backend.name,
        "precision": precision,
        "runtime": f"{backend.package} {machine['packages'].get(backend.package, '')}",
        "tokexport": machine["packages"].get("tokexport", ""),
        "kernels": backend.kernels().isa,
    }
