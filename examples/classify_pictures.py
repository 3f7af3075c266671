"""Prints the classes of pictures: all that a device needs is numpy, Pillow and the runtime.

python examples/classify_pictures.py vit-ort photo.jpg another.png
"""

import sys

import tokexport.runtimes
from tokexport.runtimes.pictures import Classifier

bundle, *photos = sys.argv[1:]
with tokexport.runtimes.load(bundle) as runner:
    for picture in Classifier(runner, top=3).classified(photos):
        print(picture.file, picture.error or "")
        for one in picture.classes:
            print(f"  {one.score:.1%}  {one.label or one.index}")
