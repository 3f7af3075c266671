"""The exit code of every kind of end, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from tokexport.exporter import errors
from tokexport.graph_passes import errors as graph_errors
from tokexport.graph_passes.reduction import errors as surgery_errors
from tokexport.runtimes import errors as runtime_errors


class ExitCode(IntEnum):
    """The exit codes of the command line."""

    PASSED = 0
    GATE_FAILED = 1
    USAGE = 2
    NOT_SUPPORTED = 3
    BUILD_FAILED = 4
    RUN_FAILED = 5
    RUNTIME_MISSING = 6
    INTERNAL = 70
    INTERRUPTED = 130


#: What each says, in Markdown: the reference shows it.
MEANINGS: Final[Mapping[ExitCode, str]] = {
    ExitCode.PASSED: (
        "Passed. Or the engine was built and could not run here, which is said in words: "
        "`BUILT, NOT RUN`."
    ),
    ExitCode.GATE_FAILED: (
        "A gate failed: parity, the surgery of `--reduce`, `--min-speedup`, or "
        "`--require-run` where the engine could not run; or this machine cannot run the bundle of "
        "`doctor`."
    ),
    ExitCode.USAGE: (
        "Usage: an option, a source or an input is not what the command needs, or the "
        "output is there already."
    ),
    ExitCode.NOT_SUPPORTED: (
        "The model is not supported: an operator that the target refuses, a shape, a "
        "token count that depends on the data (without `--token-cap`), a model that draws "
        "random numbers or answers differently on the same input, NaN in its own outputs; "
        "with `--reduce`, blocks that cannot be taken apart or that the method cannot "
        "work on, and outputs that would mean something else."
    ),
    ExitCode.BUILD_FAILED: (
        "The target's build failed, or died, or did not end; or the result could not be "
        "written: a full disk, no permission."
    ),
    ExitCode.RUN_FAILED: (
        "Running failed, or died, or did not end: too little memory, an altered or "
        "truncated bundle, a failure inside the runtime, no device for the engine."
    ),
    ExitCode.RUNTIME_MISSING: (
        "A runtime or a package is missing, or with `--require-kernels` the native kernels are; "
        "the message says how to install it."
    ),
    ExitCode.INTERNAL: "A bug in tokexport. The message names the file with the trace.",
    ExitCode.INTERRUPTED: "Interrupted. Nothing is left behind.",
}

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
    (runtime_errors.PictureError, ExitCode.USAGE),
    (runtime_errors.PreprocessingError, ExitCode.USAGE),
    (runtime_errors.OperatorRefusedError, ExitCode.NOT_SUPPORTED),
    (runtime_errors.BuildError, ExitCode.BUILD_FAILED),
    (runtime_errors.BundleError, ExitCode.RUN_FAILED),
    (runtime_errors.RunError, ExitCode.RUN_FAILED),
    (MemoryError, ExitCode.RUN_FAILED),
)


def exit_code_of(error: BaseException) -> ExitCode:
    """Returns the exit code of an error; an unknown error is a bug of tokexport."""
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return ExitCode.INTERNAL
