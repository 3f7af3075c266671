"""Reads a model from a file, a folder, a factory or a name of timm."""

from tokexport.exporter.source.load import RANDOM_WEIGHTS, load_source
from tokexport.exporter.source.options import Source, SourceOptions, default_name
from tokexport.runtimes.pictures.preprocessing import Preprocessing

__all__ = [
    "RANDOM_WEIGHTS",
    "Preprocessing",
    "Source",
    "SourceOptions",
    "default_name",
    "load_source",
]
