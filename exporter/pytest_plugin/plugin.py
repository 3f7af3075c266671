"""Hooks of pytest: options, the marker, the fixture ``parity``, and collection of locks.

Importing it loads neither torch nor a runtime.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from tokexport.exporter.pytest_plugin.lock_items import LockFile
    from tokexport.exporter.pytest_plugin.parity import Parity

_UPDATE: Final = "--tokexport-update"
_STRICT: Final = "--tokexport-strict"
MARKER: Final = (
    "tokexport(target='ort', precision='fp32', lock=None, **options): what the fixture parity "
    "compiles for; a tuple of targets or precisions makes an item of each; the lock holds what it "
    "compiles; the options are those of tokexport.compile"
)
#: What ends the name of a lock; see ``exporter.lock.lock_file``, which is not loaded for it.
_SUFFIX: Final = ".lock.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options."""
    group = parser.getgroup("tokexport", "parity of exported models")
    group.addoption(
        _UPDATE, action="store_true", help="Write what bundles are now into their locks."
    )
    group.addoption(
        _STRICT, action="store_true", help="Fail where a bundle drifts from its lock, too."
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declares the marker, and refuses to update locks from several processes."""
    config.addinivalue_line("markers", MARKER)
    if config.getoption(_UPDATE) and getattr(config.option, "numprocesses", None):
        raise pytest.UsageError(f"{_UPDATE} writes files: run it without -n.")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> LockFile | None:
    """Collects locks, and no other JSON."""
    if not file_path.name.endswith(_SUFFIX):
        return None
    from tokexport.exporter.pytest_plugin.lock_items import LockFile, holds_lock

    return LockFile.from_parent(parent, path=file_path) if holds_lock(file_path) else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Makes an item of each target and precision that the marker names."""
    if "parity" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("tokexport")
    given = {} if marker is None else marker.kwargs
    targets, precisions = (
        _several(given.get(name, default))
        for name, default in (("target", "ort"), ("precision", "fp32"))
    )
    pairs = [(target, precision) for target in targets for precision in precisions]
    ids = [f"{target}-{precision}" for target, precision in pairs]
    metafunc.parametrize("parity", pairs, ids=ids, indirect=True)


@pytest.fixture
def parity(request: pytest.FixtureRequest, tmp_path: Path) -> Parity:
    """Compiles a model, proves it against eager, and holds it to a lock where one is named."""
    from tokexport.exporter.pytest_plugin.parity import Parity

    target, precision = request.param
    marker = request.node.get_closest_marker("tokexport")
    given = {} if marker is None else dict(marker.kwargs)
    lock = given.pop("lock", None)
    return Parity(
        folder=tmp_path,
        options={**given, "target": target, "precision": precision},
        lock=None if lock is None else request.path.parent / lock,
        name=request.node.name,
        update=request.config.getoption(_UPDATE),
        strict=request.config.getoption(_STRICT),
    )


def _several(given: str | tuple[str, ...] | list[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
