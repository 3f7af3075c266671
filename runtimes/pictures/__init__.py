"""Turns a file of a picture into the input of a model, with numpy and Pillow alone."""

from tokexport.runtimes.pictures.decoding import Picture, decode
from tokexport.runtimes.pictures.preprocessing import Preprocessing
from tokexport.runtimes.pictures.steps_text import parse_preprocessing

__all__ = ["Picture", "Preprocessing", "decode", "parse_preprocessing"]
