"""Runs a bundle: numpy in, numpy out, with the bundle's own runtime and nothing more."""

from tokexport.runtimes.base import Runner
from tokexport.runtimes.loading import load
from tokexport.runtimes.manifest import TensorSpec

__all__ = ["Runner", "TensorSpec", "load"]
