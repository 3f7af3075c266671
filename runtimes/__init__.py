"""Runs a bundle: numpy in, numpy out, with the bundle's own runtime and nothing more."""

from tokexport.runtimes.bundle.bundle_runner import BundleRunner
from tokexport.runtimes.bundle.manifest import TensorSpec
from tokexport.runtimes.bundle.runner import Runner
from tokexport.runtimes.loading import load

__all__ = ["BundleRunner", "Runner", "TensorSpec", "load"]
