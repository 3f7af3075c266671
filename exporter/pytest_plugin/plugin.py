"""Hooks of pytest: options, the marker, the fixture ``parity``, and collection of locks.

Importing it loads neither torch nor a runtime.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

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
#: The fixture that an item's target and precision go through.
_CASE: Final = "_tokexport_case"
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
    several = getattr(config.option, "numprocesses", None) or getattr(config.option, "tx", None)
    if config.getoption(_UPDATE) and several:
        raise pytest.UsageError(f"{_UPDATE} writes files: run it in one process, without -n.")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> LockFile | None:
    """Collects locks, and no other JSON."""
    if not file_path.name.endswith(_SUFFIX):
        return None
    from tokexport.exporter.pytest_plugin.lock_items import LockFile, holds_lock

    return LockFile.from_parent(parent, path=file_path) if holds_lock(file_path) else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Makes an item of each target and precision that the marker names."""
    replaced = (
        "parity" in str(marker.args[0]).replace(" ", "").split(",")
        for marker in metafunc.definition.iter_markers("parametrize")
        if marker.args and isinstance(marker.args[0], str)
    )
    if _CASE not in metafunc.fixturenames or any(replaced):
        return
    cases = _cases(metafunc.definition)
    ids = [f"{target}-{precision}" for target, precision in cases]
    metafunc.parametrize(_CASE, cases, ids=ids, indirect=True)


@pytest.fixture
def _tokexport_case(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The target and the precision of this item."""
    given: tuple[str, str] | None = getattr(request, "param", None)
    return given or _cases(request.node)[0]


@pytest.fixture
def parity(
    request: pytest.FixtureRequest, tmp_path: Path, _tokexport_case: tuple[str, str]
) -> Parity:
    """Compiles a model, proves it against eager, and holds it to a lock where one is named."""
    from tokexport.exporter.pytest_plugin.parity import Parity

    target, precision = _tokexport_case
    given = _marked(request.node)
    lock = given.pop("lock", None)
    names = [request.path.name, *request.node.nodeid.split("::")[1:]]
    return Parity(
        folder=tmp_path,
        options={**given, "target": target, "precision": precision},
        lock=None if lock is None else request.path.parent / lock,
        name="::".join(names),
        update=request.config.getoption(_UPDATE),
        strict=request.config.getoption(_STRICT),
    )


def _marked(node: pytest.Item) -> dict[str, Any]:
    """Returns the options of a test's marker.

    Raises:
        pytest.UsageError: It has options without a name.
    """
    marker = node.get_closest_marker("tokexport")
    if marker is not None and marker.args:
        raise pytest.UsageError(
            f"{node.nodeid}: the marker tokexport takes options by name: target='openvino'"
        )
    return {} if marker is None else dict(marker.kwargs)


def _cases(node: pytest.Item) -> list[tuple[str, str]]:
    """Returns the targets and precisions that a test is for.

    Raises:
        pytest.UsageError: Its marker names none.
    """
    given = _marked(node)
    targets = _several(given.get("target", "ort"))
    cases = [
        (target, precision)
        for target in targets
        for precision in _several(given.get("precision", "fp32"))
    ]
    if not cases:
        raise pytest.UsageError(f"{node.nodeid}: the marker tokexport names no target or precision")
    return cases


def _several(given: str | tuple[str, ...] | list[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
