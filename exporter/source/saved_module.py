"""Loads a whole module that ``torch.save(model, path)`` wrote.

The file is a pickle that names the model's classes and calls them: loading it runs code. Its
contents are read first without running any of it, so that a file that needs no trust (a state dict,
a tensor) gets advice that fits it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokexport.exporter.errors import SourceError, UntrustedPickleError, listed
from tokexport.exporter.source.code_path import failed_code, on_code_path
from tokexport.exporter.source.factory import FACTORY_FORM, explain_unpicklable
from tokexport.exporter.source.files.checkpoint import contents, find_state_dict
from tokexport.exporter.source.files.inert_pickle import Inert
from tokexport.exporter.source.files.torch_file import TorchFile, read_torch_file

if TYPE_CHECKING:
    from torch import nn

SAFE_FORMS = (
    "Safe ways to pass a model:\n"
    "  - export it: torch.export.save(torch.export.export(model.eval(), (x,)), 'model.pt2')\n"
    "  - name a function that makes it: package.module:factory, with --code-path\n"
    "  - torch.save(model.state_dict(), path), and pass --builder package.module:factory with it\n"
    "Or pass --trust-pickle if you trust where the file comes from."
)


def load_saved_module(path: Path, folders: Sequence[Path], trust_pickle: bool) -> nn.Module:
    """Loads a pickled module, in the mode it was saved in.

    Args:
        path: A file of torch.save.
        folders: Folders searched for the model's classes before the installed packages.
        trust_pickle: Whether the code in the file may run.

    Raises:
        UntrustedPickleError: The file holds a module, and its code may not run.
        SourceError: The file holds no module, or the module's classes are not found.
    """
    file = read_torch_file(path)
    if not isinstance(file.root, Inert):
        raise _no_module(file)
    if not trust_pickle:
        raise UntrustedPickleError(
            f"The file is a pickled object ({file.root.origin}): loading it runs its code.",
            where=f"{path}, which names {listed(file.origins)}",
            fix=SAFE_FORMS,
        )
    model = _unpickle(file, folders)
    from torch import nn

    if not isinstance(model, nn.Module):
        raise SourceError(
            f"The file holds a {type(model).__name__}, which is not a torch.nn.Module.",
            where=str(path),
            fix="Save the module itself, or its state dict and pass --builder.",
        )
    return model


def _no_module(file: TorchFile) -> SourceError:
    found = find_state_dict(file.root)
    if found is None:
        return SourceError(
            "The file holds no model and no state dict.",
            where=f"{file.path} holds {contents(file.root)}",
            fix=f"Save the module's state dict, or write a factory:\n{FACTORY_FORM}",
        )
    place = f"under {found.key!r} " if found.key else ""
    what = "a training checkpoint" if found.key else "a state dict"
    return SourceError(
        f"The file is {what}: weights {place}without the model they belong to.",
        where=f"{file.path} holds {len(found.records)} tensors, such as "
        f"{listed(list(found.records), 3)}",
        fix="Pass --builder package.module:factory, a function that makes the model:\n"
        f"{FACTORY_FORM}\n"
        "A model of timm needs none: pass timm:NAME --checkpoint with this file.",
    )


def _unpickle(file: TorchFile, folders: Sequence[Path]) -> object:
    import torch

    path = file.path
    with on_code_path(folders):
        try:
            loaded: object = torch.load(path, map_location="cpu", weights_only=False)
        except ModuleNotFoundError as error:
            raise SourceError(
                f"The module {error.name!r}, which the model's classes are in, is not found.",
                where=str(path),
                fix="Pass --code-path DIR, the folder that holds its top package or .py file.",
            ) from error
        except AttributeError as error:
            raise _missing_class(file, error, folders) from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise failed_code(f"Loading {path.name} failed", error, folders) from error
    return loaded


def _missing_class(file: TorchFile, error: AttributeError, folders: Sequence[Path]) -> SourceError:
    """Returns the error for a class missing from its module, or for the model's own error."""
    path = file.path
    unpicklable = explain_unpicklable(error)
    if unpicklable:
        return SourceError("The model cannot be unpickled.", where=str(path), fix=unpicklable)
    match = re.search(r"Can't get attribute '([^']+)' on <module '([^']+)'", str(error))
    if match is None:
        return failed_code(f"Loading {path.name} failed", error, folders)
    name, module = match[1], match[2]
    if f"__main__.{name}" in file.origins:
        return SourceError(
            f"The class {name!r} was defined in the script that saved the model.",
            where=f"{path} names it __main__.{name}",
            fix=f"Move the class into a module and write a factory:\n{FACTORY_FORM}",
        )
    return SourceError(
        f"The module {module!r} has no class {name!r}, which the model was saved with.",
        where=str(path),
        fix="Pass with --code-path the version of the code that the model was saved with.",
    )
