"""Says how a bundle is loaded to be run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokexport.exporter.config import check_threads
from tokexport.runtimes.bundle.bundle_runner import BundleRunner
from tokexport.runtimes.loading import load


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a bundle is loaded.

    Attributes:
        threads: The most threads for a CPU runtime; None leaves the choice to the runtime.
        require_kernels: Whether to fail where the target's native kernels do not load.
        public_key: The key that has to have signed the bundle; None for that of the environment.
        certificates: Those that the signer's certificate has to come from, instead; None for none.
    """

    threads: int | None = None
    require_kernels: bool = False
    public_key: Path | None = None
    certificates: tuple[Path, ...] | None = None

    def __post_init__(self) -> None:
        """Refuses a number of threads that no runtime can take."""
        check_threads(self.threads)

    def load(self, bundle: Path) -> BundleRunner:
        """Loads a bundle.

        Raises:
            tokexport.runtimes.errors.RuntimesError: It is altered, or cannot run here.
        """
        return load(
            bundle,
            threads=self.threads,
            require_kernels=self.require_kernels,
            public_key=self.public_key,
            certificates=self.certificates,
        )
