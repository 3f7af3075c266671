"""Turns files of pictures into inputs of a model, and into its classes, with numpy and Pillow."""

from tokexport.runtimes.pictures.classification import (
    ClassifiedPicture,
    Classifier,
    ClassScore,
    classify,
)
from tokexport.runtimes.pictures.decoding import Picture, decode
from tokexport.runtimes.pictures.preprocessing import Preprocessing
from tokexport.runtimes.pictures.steps_text import parse_preprocessing

__all__ = [
    "ClassScore",
    "ClassifiedPicture",
    "Classifier",
    "Picture",
    "Preprocessing",
    "classify",
    "decode",
    "parse_preprocessing",
]
