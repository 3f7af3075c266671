"""Lets torchvision be imported beside a torch that its compiled operators were not built for.

torchvision's wheel for CUDA cannot load its library beside the CPU build of torch. Its Python code
then still describes two operators that nobody registered, and the import fails. Defining their
schemas is enough: no model here calls them.

In this process: ``define_torchvision_operators()`` before the first import of torchvision. In a
process that a test starts: ``env=child_environment()``, which puts a ``sitecustomize`` on its path
that does the same just before torchvision is imported, and imports nothing until then.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_TESTS = Path(__file__).parents[1]
_libraries: list[object] = []  # a torch.library.Library takes its operators along when it goes


def define_torchvision_operators() -> None:
    """Defines the operators that torchvision cannot bring itself; does so once."""
    import torch

    if _library_loads():
        return
    for schema in SCHEMAS:
        if not torch._C._jit_get_schemas_for_operator(f"torchvision::{schema.partition('(')[0]}"):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(schema)
            _libraries.append(library)


def child_environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns an environment in which a child process can import torchvision.

    Args:
        base: The environment to start from; this process's own when None.
    """
    environment = dict(os.environ if base is None else base)
    before = environment.get("PYTHONPATH")
    folders = [
        str(_TESTS / "helpers" / "child_process"),
        str(_TESTS),
        *([before] if before else []),
    ]
    environment["PYTHONPATH"] = os.pathsep.join(folders)
    return environment


def _library_loads() -> bool:
    """Says whether torchvision's own library is of this torch's build; loads it if so."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return True
    return False
