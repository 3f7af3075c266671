"""Quantises an OpenVINO model to 8-bit integers with NNCF.

Post-training quantisation with the transformer preset: symmetric weights with a scale for each
channel, asymmetric activations, smoothing and bias correction. What selects, counts and moves
tokens, the head, and the patch embedding are left out by name.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tokexport.exporter.openvino_graph.roles import operators_and_roles
from tokexport.exporter.openvino_graph.rows import scaled_by_fixed_row
from tokexport.runtimes.arrays import Array
from tokexport.runtimes.errors import BuildError
from tokexport.runtimes.importing import import_runtime
from tokexport.runtimes.memory import FIX, lacking, lacks_memory
from tokexport.runtimes.openvino.runner import import_openvino, no_telemetry

EXTRA = "int8"


def quantise(converted: Path, artifact: Path, samples: Sequence[Mapping[str, Array]]) -> None:
    """Quantises a converted model on samples.

    Args:
        converted: The ``.xml`` of the IR, its ``.bin`` beside it.
        artifact: Where the quantised one goes; another folder.
        samples: The samples, arrays by the input's name.

    Raises:
        RuntimeMissingError: NNCF is not installed.
        BuildError: NNCF cannot quantise the model.
    """
    openvino = import_openvino()
    nncf = import_nncf()
    model = openvino.Core().read_model(converted)
    scope = nncf.IgnoredScope(names=left_out(model), validate=False)
    try:
        with _quiet():
            quantised = nncf.quantize(
                model,
                nncf.Dataset(samples),
                preset=nncf.QuantizationPreset.MIXED,
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(samples),
                ignored_scope=scope,
            )
    except Exception as error:  # NNCF raises its own classes and those of OpenVINO
        if lacks_memory(error):
            raise BuildError(
                lacking("NNCF", "quantising the model"), where=str(converted), fix=FIX
            ) from error
        said = str(error).strip() or repr(error)
        raise BuildError(
            f"NNCF cannot quantise the model: {said.splitlines()[0]}", where=str(converted)
        ) from error
    openvino.save_model(quantised, str(artifact), compress_to_fp16=False)


def import_nncf() -> ModuleType:
    """Imports NNCF, without the usage statistics that it would send."""
    with no_telemetry(), _quiet():
        return import_runtime("nncf", extra=EXTRA)


def left_out(model: Any) -> list[str]:
    """Returns the names of the operators of an ``openvino.Model`` that stay in float32."""
    operators, roles = operators_and_roles(model)
    kept = roles.exact | roles.heads | roles.first
    names = {
        operators[i].get_friendly_name() for i in kept if operators[i].get_type_name() != "Constant"
    }
    return sorted(names | scaled_by_fixed_row(model))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps NNCF's log and its progress bars off the user's terminal."""
    logger = logging.getLogger("nncf")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(action="ignore"),
        ):
            yield
    finally:
        logger.setLevel(before)
