"""The exit code of every kind of end, in one table."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from tokexport.exporter import errors
from tokexport.graph_passes import errors as graph_errors
from tokexport.graph_passes.reduction import errors as surgery_errors
from tokexport.runtimes import errors as runtime_errors


class ExitCode(IntEnum):
    """What a process of tokexport ends with."""

    PASSED = 0
    GATE_FAILED = 1
    USAGE = 2
    NOT_SUPPORTED = 3
    BUILD_FAILED = 4
    RUN_FAILED = 5
    RUNTIME_MISSING = 6
    INTERNAL = 70
    INTERRUPTED = 130


#: The first class that an error is an instance of decides.
_CODES: Final[tuple[tuple[type[Exception], ExitCode], ...]] = (
    (errors.GateError, ExitCode.GATE_FAILED),
    (errors.UsageError, ExitCode.USAGE),
    (errors.ModelNotSupportedError, ExitCode.NOT_SUPPORTED),
    (errors.WriteError, ExitCode.BUILD_FAILED),
    (errors.PackageMissingError, ExitCode.RUNTIME_MISSING),
    (graph_errors.OperatorRefusedError, ExitCode.NOT_SUPPORTED),
    (graph_errors.TokenCountError, ExitCode.NOT_SUPPORTED),
    (surgery_errors.SurgeryError, ExitCode.NOT_SUPPORTED),
    (runtime_errors.RuntimeMissingError, ExitCode.RUNTIME_MISSING),
    (runtime_errors.InputMismatchError, ExitCode.USAGE),
    (runtime_errors.OperatorRefusedError, ExitCode.NOT_SUPPORTED),
    (runtime_errors.BuildError, ExitCode.BUILD_FAILED),
    (runtime_errors.BundleError, ExitCode.RUN_FAILED),
    (runtime_errors.RunError, ExitCode.RUN_FAILED),
    (MemoryError, ExitCode.RUN_FAILED),
)


def exit_code_of(error: BaseException) -> ExitCode:
    """Returns the exit code of an error; whatever is not a known one is a bug of ours."""
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return ExitCode.INTERNAL
