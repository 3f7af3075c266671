"""Makes a model a function of named tensors, whatever its ``forward`` takes and returns."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from tokexport.exporter.eager.outputs import Constant, flatten, refuse_empty
from tokexport.exporter.errors import InputError, ModelNotSupportedError
from tokexport.exporter.inputs.nested_tensors import Nest, Template, filled, places, template

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
#: The kinds of parameters that take whatever is given.
CATCH_ALL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True, eq=False)
class CallSpec:
    """The mapping of named tensors to the arguments of ``forward``.

    Attributes:
        names: The input names: in the order of ``forward``, whatever the order of a dict.
        examples: The example of each.
        args: The positional arguments, with places for tensors by name.
        kwargs: The named arguments, in the order they were given in.
        constants: The tensors that are fixed, by name; they are none of the inputs.
        numbers: The constants that ``forward`` takes as Python numbers, by name.
    """

    names: tuple[str, ...]
    examples: tuple[Tensor, ...]
    args: tuple[Template, ...]
    kwargs: dict[str, Template]
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    numbers: Mapping[str, bool | int | float] = field(default_factory=dict)

    def fixing(self, constants: Mapping[str, Tensor]) -> CallSpec:
        """Returns the same call with some of its inputs fixed."""
        pairs = zip(self.names, self.examples, strict=True)
        left = {name: example for name, example in pairs if name not in constants}
        fixed = {**self.constants, **constants}
        return replace(self, names=(*left,), examples=(*left.values(),), constants=fixed)

    def arguments(
        self, tensors: Sequence[Tensor], constants: Mapping[str, Tensor] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns (args, kwargs) with the tensors, given in the order of ``names``.

        Args:
            tensors: The inputs.
            constants: Replaces the constants; without it the constants themselves are passed.
        """
        fixed = self.constants if constants is None else constants
        named = {**fixed, **dict(zip(self.names, tensors, strict=True)), **self.numbers}
        args = tuple(filled(one, named) for one in self.args)
        return args, {key: filled(one, named) for key, one in self.kwargs.items()}


def call_spec(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> CallSpec:
    """Names the tensors among the example arguments after the parameters of ``forward``.

    Raises:
        InputError: ``forward`` does not take these arguments, or two inputs get one name.
    """
    parameters = _parameters_for(model, args, kwargs)
    positional = [name for name, one in parameters.items() if one.kind in _POSITIONAL]
    more = len(args) - len(positional)
    others = _find_kind(parameters, inspect.Parameter.VAR_POSITIONAL)
    own = [*positional[: len(args)], *_names_of_others(others, more)]
    given = tuple(template(value, name) for name, value in zip(own, args, strict=True))
    named = {key: template(value, key) for key, value in kwargs.items()}

    by_name = [(name, one) for name, one in named.items() if name in parameters]
    ordered = [*zip(positional, given, strict=False), *by_name]
    ordered += [(others, one) for one in given[len(positional) :]]
    rank = list(parameters)
    ordered.sort(key=lambda pair: rank.index(pair[0]))
    rest = tuple(one for name, one in named.items() if name not in parameters)
    found: dict[str, Tensor] = {}
    for one in (*(one for _, one in ordered), Nest(rest, list, free=True)):
        for place in places(one):
            if place.name in found:
                raise InputError(
                    f"Two inputs of the model would be called '{place.name}'.",
                    fix="Rename an argument of forward, so that parts joined by '_' differ.",
                )
            found[place.name] = place.example
    return CallSpec(tuple(found), tuple(found.values()), given, named)


def call_by_name(
    model: nn.Module, given: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the arguments by which ``forward`` takes values under the names of its inputs."""
    rest = dict(given)
    parameters = forward_parameters(model)
    others = _find_kind(parameters, inspect.Parameter.VAR_POSITIONAL)
    extra = _given_others(others, rest) if others else []
    args: list[Any] = []
    for name, parameter in parameters.items():
        if name == others:
            args += [rest.pop(one) for one in extra]
        elif parameter.kind is inspect.Parameter.POSITIONAL_ONLY or (
            extra and parameter.kind in _POSITIONAL
        ):
            if name not in rest:
                break
            args.append(rest.pop(name))
    return tuple(args), rest


def _find_kind(parameters: Mapping[str, inspect.Parameter], kind: Any) -> str:
    return next((name for name, one in parameters.items() if one.kind is kind), "")


def _names_of_others(parameter: str, count: int) -> list[str]:
    """Names the arguments that ``*parameter`` takes."""
    if count == 1:
        return ["input"]
    return [f"{parameter}_{position}" for position in range(count)]


def _given_others(parameter: str, given: Mapping[str, Any]) -> list[str]:
    """Returns the names that belong to ``*parameter``, in its order."""
    if "input" in given:
        return ["input"]
    numbered = (f"{parameter}_{position}" for position in range(len(given)))
    return list(takewhile(lambda name: name in given, numbered))


def _parameters_for(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, inspect.Parameter]:
    """Returns the parameters that take these arguments.

    A decorated or patched ``forward`` may take more arguments than the signature that it shows.
    """
    named = forward_parameters(model)
    outer = dict(inspect.signature(model.forward, follow_wrapped=False).parameters)
    for parameters in (named, outer):
        try:
            inspect.Signature(list(parameters.values())).bind(*args, **kwargs)
        except TypeError as error:
            if parameters is not outer:
                said = error
            continue
        return parameters
    raise InputError(
        f"The example inputs do not fit the model's forward: {said}.",
        fix=f"It is forward{inspect.Signature(list(named.values()))}.",
    ) from said


def forward_parameters(model: nn.Module) -> dict[str, inspect.Parameter]:
    """Returns the parameters of ``forward`` without self.

    A patched ``forward(*args, **kwargs)`` that passes everything on has no names of its own; the
    nearest ``forward`` of a base class that has some gives them.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelNotSupportedError(
            "The model is TorchScript, which has no Python code to trace.",
            fix="Give the module that it was scripted or traced from.",
        )
    own = dict(inspect.signature(model.forward).parameters)
    if not own or any(parameter.kind not in CATCH_ALL for parameter in own.values()):
        return own
    for base in type(model).__mro__[1:]:
        forward = base.__dict__.get("forward")
        if forward is None or base is nn.Module:
            continue
        parameters = list(inspect.signature(forward).parameters.values())[1:]
        if parameters and any(parameter.kind not in CATCH_ALL for parameter in parameters):
            return {parameter.name: parameter for parameter in parameters}
    return own


class FlatModel(nn.Module):
    """The model as a function from named tensors to a flat tuple of tensors.

    Args:
        model: The user's model; it is held, not copied.
        spec: How the inputs become its arguments.

    Attributes:
        settled: The weights that it writes with the same numbers whatever the input; the model is
            a copy then, which holds them.
    """

    settled: frozenset[str] = frozenset()

    def __init__(self, model: nn.Module, spec: CallSpec) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        for position, value in enumerate(spec.constants.values()):
            self.register_buffer(f"constant_{position}", value.clone(), persistent=False)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Runs the model; the outputs come in the order of ``output_names``."""
        args, kwargs = self._arguments(tensors)
        return tuple(flatten(self.model(*args, **kwargs))[0].values())

    def named_outputs(self, *tensors: Tensor) -> tuple[dict[str, Tensor], dict[str, Constant]]:
        """Runs the model and returns its tensors and its constants by name.

        An output called like an input becomes NAME_out, or the next free name: ONNX has one space
        of names.
        """
        args, kwargs = self._arguments(tensors)
        outputs, constants = flatten(self.model(*args, **kwargs))
        refuse_empty(outputs)
        taken = {*self.spec.names, *outputs}
        named: dict[str, Tensor] = {}
        for name, tensor in outputs.items():
            free = name
            while free in self.spec.names or (free != name and free in taken):
                free += "_out"
            named[free] = tensor
            taken.add(free)
        return named, constants

    def _arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Fills in the constants too, each as a copy: a model may write into what it is given."""
        fixed = {
            name: self.get_buffer(f"constant_{position}").clone()
            for position, name in enumerate(self.spec.constants)
        }
        return self.spec.arguments(tensors, fixed)
