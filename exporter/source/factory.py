"""Calls ``package.module:factory``, the user's function that makes the model."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from tokexport.exporter.errors import SourceError, listed
from tokexport.exporter.source.code_path import failed_code, import_module, on_code_path

if TYPE_CHECKING:
    from torch import nn

_FORM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
FACTORY_FORM = """\
    # mymodel.py
    def build():
        return MyModel()          # or (MyModel(), example_inputs)
and name it: mymodel:build, with --code-path set to the folder of mymodel.py."""


class Built(NamedTuple):
    """A model as a factory made it, with the example inputs it gave, if any."""

    model: nn.Module
    example_args: tuple[Any, ...] | None
    example_kwargs: dict[str, Any]


def is_factory_name(text: str) -> bool:
    """Returns whether a text has the form ``package.module:factory``."""
    return _FORM.fullmatch(text) is not None


def call_factory(name: str, folders: Sequence[Path]) -> Built:
    """Imports and calls a factory.

    Args:
        name: ``package.module:factory``; the factory is a function or a class that needs no
            arguments, or a module that is made already.
        folders: Folders searched before the installed packages.

    Returns:
        The model, in the mode the factory left it in, and its example inputs.

    Raises:
        SourceError: The module or the name is not there, the user's code fails, or what comes
            back is not a module or (module, example inputs).
    """
    if not is_factory_name(name):
        raise SourceError(
            f"{name!r} does not name a factory.",
            fix="Write it as package.module:factory, for example mymodel:build.",
        )
    module_name, _, attribute = name.partition(":")
    with on_code_path(folders):
        found = _attribute(import_module(module_name, folders), attribute)
        return _unpack(_call(found, name, folders), name)


def explain_unpicklable(error: BaseException) -> str:
    """Explains a model that pickle cannot take because its class was made inside a function.

    Patching a model's class at run time does this. Pickle finds a class by its name, and this one
    cannot be found by its name.

    Args:
        error: What pickle raised while saving or loading.

    Returns:
        What happened and what to do; empty for other errors.
    """
    match = re.search(r"'?([\w.]*<locals>[\w.<>]*)'?", str(error))
    if match is None:
        return ""
    return (
        f"The class {match[1]} was made inside a function (as patching a model's class does), and "
        f"pickle finds no class there. Write a factory instead:\n{FACTORY_FORM}"
    )


def _attribute(module: ModuleType, path: str) -> Any:
    found: Any = module
    for name in path.split("."):
        if not hasattr(found, name):
            raise _no_attribute(found, module, name)
        found = getattr(found, name)
    return found


def _no_attribute(owner: Any, module: ModuleType, name: str) -> SourceError:
    public = [
        key
        for key, value in vars(owner).items()
        if callable(value)
        and not key.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
    ]
    near = difflib.get_close_matches(name, public, n=3)
    candidates = near + [key for key in public if key not in near]
    return SourceError(
        f"The module {module.__name__!r} has no {name!r}.",
        where=str(module.__file__ or module.__name__),
        fix=f"It has {listed(candidates)}."
        if candidates
        else "It defines no functions or classes.",
    )


def _call(found: Any, name: str, folders: Sequence[Path]) -> Any:
    from torch import nn

    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise SourceError(
            f"{name!r} cannot be called: it is of the type {type(found).__name__}.",
            fix="Name a function or a class that makes the model.",
        )
    _check_no_arguments(found, name)
    try:
        return found()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise failed_code(f"The factory {name!r} failed", error, folders) from error


def _check_no_arguments(found: Callable[..., Any], name: str) -> None:
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):  # some built-in callables have no signature
        return
    needed = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise SourceError(
            f"The factory {name!r} needs arguments: {listed(needed)}.",
            fix="A factory is called without any: give them defaults, or write a function that "
            "passes them.",
        )


def _unpack(made: Any, name: str) -> Built:
    from torch import nn

    if isinstance(made, nn.Module):
        return Built(made, None, {})
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        args, kwargs = _example_inputs(made[1], name)
        return Built(made[0], args, kwargs)
    returned = type(made).__name__
    if isinstance(made, tuple):
        returned = f"({', '.join(type(item).__name__ for item in made)})"
    elif isinstance(made, type) and issubclass(made, nn.Module):
        returned = f"the class {made.__name__} itself, not an instance of it"
    raise SourceError(
        f"The factory {name!r} returned {returned}.",
        fix="Return a torch.nn.Module, or (module, example_inputs).",
    )


def _example_inputs(inputs: Any, name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the example inputs as positional ones and ones by name."""
    from torch import Tensor

    from tokexport.exporter.inputs.nested_tensors import holds_tensor

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, Tensor):
        args = (inputs,)
    elif isinstance(inputs, (tuple, list)):
        args = tuple(inputs)
    elif isinstance(inputs, Mapping) and all(isinstance(key, str) for key in inputs):
        kwargs = dict(inputs)
    if not holds_tensor((args, kwargs)):
        raise SourceError(
            f"The example inputs of the factory {name!r} hold no tensor "
            f"(they are a {type(inputs).__name__}).",
            fix="Return (module, tensor), (module, (tensor, …)) or (module, {'name': tensor}).",
        )
    return args, kwargs
