"""Describes a model to Triton Inference Server: the text of ``config.pbtxt``.

The fields are those of the message ``inference.ModelConfig``, in the text form of protocol buffers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tokexport.exporter.errors import UsageError
from tokexport.runtimes.bundle.manifest import TensorSpec

#: Triton's types, by those of numpy.
TYPES: Final = {
    "bool": "TYPE_BOOL",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    **{f"int{bits}": f"TYPE_INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"TYPE_UINT{bits}" for bits in (8, 16, 32, 64)},
}


class Name(str):
    """A value that stands without quotes: a type, or a kind."""


@dataclass(frozen=True)
class WarmUp:
    """The data of one input of a request that warms up.

    Attributes:
        spec: The input, as a request has it.
        file: The file in the folder ``warmup``.
    """

    spec: TensorSpec
    file: str


@dataclass(frozen=True)
class TritonModel:
    """What Triton has to know of a model.

    Attributes:
        name: Its name, that of its folder.
        backend: The backend that runs it.
        file: The file in the folder of the version that the backend loads.
        inputs: The inputs of a request, without the batch where ``batches`` are given.
        outputs: The outputs, likewise.
        batches: The batches to prefer, ascending; empty where a request is a whole batch.
        instances: How many instances run at once.
        on_gpu: Whether they run on a GPU.
        delay_us: Microseconds for which a request waits for others, where there are batches.
        labels: The output whose entries ``labels.txt`` names; None for none.
        parameters: Texts for the backend.
        library: A library of operators that the backend loads; None for none.
        warm_up: A request that is run when the model is loaded.
    """

    name: str
    backend: str
    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batches: tuple[int, ...] = ()
    instances: int = 1
    on_gpu: bool = False
    delay_us: int = 0
    labels: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    library: str | None = None
    warm_up: tuple[WarmUp, ...] = ()

    def config(self) -> str:
        """Returns the text of ``config.pbtxt``.

        Raises:
            UsageError: A tensor has a size of 0, which Triton does not take.
        """
        fields: list[tuple[str, Any]] = [
            ("name", self.name),
            ("backend", self.backend),
            ("default_model_filename", self.file),
            ("max_batch_size", self.batches[-1] if self.batches else 0),
            *(("input", self._tensor(spec)) for spec in self.inputs),
            *(("output", self._output(spec)) for spec in self.outputs),
            ("instance_group", self._instances()),
        ]
        if self.batches:
            waits = [("preferred_batch_size", size) for size in self.batches]
            fields.append(("dynamic_batching", [*waits, *self._delay()]))
        if self.warm_up:
            inputs = [("inputs", _warm(one)) for one in self.warm_up]
            fields.append(("model_warmup", [("name", "sample"), ("batch_size", 1), *inputs]))
        for key, text in self.parameters.items():
            fields.append(("parameters", [("key", key), ("value", [("string_value", text)])]))
        if self.library:
            fields.append(("model_operations", [("op_library_filename", self.library)]))
        return "\n".join(_lines(fields)) + "\n"

    def _output(self, spec: TensorSpec) -> list[tuple[str, Any]]:
        named = spec.name == self.labels
        return [*self._tensor(spec), *([("label_filename", "labels.txt")] if named else [])]

    def _tensor(self, spec: TensorSpec) -> list[tuple[str, Any]]:
        if 0 in spec.shape:
            raise UsageError(
                f"Triton takes no tensor with a size of 0, as {spec.name} has it.",
                where=str(spec),
                fix="Compile the model without it.",
            )
        kind = ("data_type", Name(TYPES[spec.dtype]))
        found = [("name", spec.name), kind, *_dims(spec.shape)]
        if self.batches and not spec.shape:  # a number a sample: the model has no axis for it
            found.append(("reshape", []))
        return found

    def _instances(self) -> list[tuple[str, Any]]:
        kind = Name("KIND_GPU" if self.on_gpu else "KIND_CPU")
        return [("count", self.instances), ("kind", kind)]

    def _delay(self) -> list[tuple[str, Any]]:
        return [("max_queue_delay_microseconds", self.delay_us)] if self.delay_us else []


def _dims(shape: Sequence[int]) -> list[tuple[str, Any]]:
    return [("dims", size) for size in shape or (1,)]


def _warm(one: WarmUp) -> list[tuple[str, Any]]:
    kind = ("data_type", Name(TYPES[one.spec.dtype]))
    data = ("input_data_file", one.file)
    return [("key", one.spec.name), ("value", [kind, *_dims(one.spec.shape), data])]


def _lines(fields: Sequence[tuple[str, Any]], depth: int = 0) -> list[str]:
    """Returns the text form of a message, a line each."""
    space, found = "  " * depth, []
    for name, value in fields:
        if isinstance(value, list):
            found += [f"{space}{name} {{", *_lines(value, depth + 1), f"{space}}}"]
        else:
            found.append(f"{space}{name}: {_shown(value)}")
    return found


def _shown(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Name | int):
        return str(value)
    return '"' + "".join(map(_escaped, value.encode())) + '"'


_PLAIN: Final = re.compile(rb"[ -!#-\[\]-~]")


def _escaped(byte: int) -> str:
    """Returns a byte of a text, in octal where it is not plain."""
    one = bytes([byte])
    return one.decode() if _PLAIN.fullmatch(one) else f"\\{byte:03o}"
