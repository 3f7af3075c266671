"""Defines the errors of ``runtimes``: what happened, where, and what to do."""

from __future__ import annotations

from tokexport.runtimes.printable import printable


class RuntimesError(Exception):
    """An error that the user can fix; it is shown without a traceback.

    Runtimes quote names from files, so control characters are escaped.

    Args:
        what: What happened, one sentence.
        where: The file, node, input or device it happened at; empty if unknown.
        fix: What the user can do now; empty only when nothing can be done.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = map(printable, (what, where, fix))
        super().__init__(self.what)

    def __str__(self) -> str:
        """Returns the parts that are not empty, a line each."""
        return "\n".join(part for part in (self.what, self.where, self.fix) if part)


class RuntimeMissingError(RuntimesError):
    """A runtime, or a package it needs, is not installed; ``fix`` is the install command."""


class KernelsError(RuntimeMissingError):
    """The native kernels are required, and are not there or do not load."""


class BundleError(RuntimesError):
    """The bundle is not whole: a file is missing, truncated or altered, or its schema unknown."""


class SignatureError(BundleError):
    """The signature of a bundle is missing, another's, or not over these files."""


class InputMismatchError(RuntimesError):
    """An input to a run does not fit the model: name, shape, dtype, or a NaN in it."""


class PictureError(RuntimesError):
    """A file is no picture that can be decoded, or is larger than is decoded."""


class PreprocessingError(RuntimesError):
    """The steps from a picture to an input are not known, or do not give what the model takes."""


class NodeError(RuntimesError):
    """A runtime failed at a node, which it may have named.

    Args:
        what: What happened, one sentence.
        where: The file, the node or the device it happened at.
        fix: What the user can do now.
        node: Name of the ONNX node to blame, or of its output where the runtime names nodes so;
            empty when the runtime did not say.
        operator: The operator to blame, as ``domain:Type`` or ``Type``; empty when unknown.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        fix: str = "",
        node: str = "",
        operator: str = "",
    ) -> None:
        super().__init__(what, where=where, fix=fix)
        self.node = node
        self.operator = operator


class BuildError(NodeError):
    """The runtime could not make a runnable model of the file."""


class OperatorRefusedError(BuildError):
    """The runtime takes no operator of this kind; ``node`` and ``operator`` name it."""


class RunError(NodeError):
    """Running failed: no device, an engine of another version, a failure inside the runtime."""


class IncompatibleError(RunError):
    """The runtime, the system or the processor here is another one than the artifact needs."""


class ProcessorError(IncompatibleError):
    """This processor computes otherwise than the artifact needs, and would answer wrongly."""


class NoDeviceError(RunError):
    """This machine has no device that the engine runs on: no GPU, or one it was not built for."""
