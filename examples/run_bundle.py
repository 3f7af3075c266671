"""Runs a bundle on the samples of an .npz: all that a device needs is numpy and the runtime.

python examples/run_bundle.py demo-output/model-ort demo-output/test.npz
"""

import sys

import numpy as np

import tokexport.runtimes

bundle, samples = sys.argv[1:]
with np.load(samples) as file, tokexport.runtimes.load(bundle) as runner:
    spec = runner.inputs[0]
    images, labels = file[spec.name], file["labels"]
    batches = images[: len(images) // spec.shape[0] * spec.shape[0]].reshape(-1, *spec.shape)
    logits = np.concatenate([runner.run({spec.name: batch})["output"] for batch in batches])

right = (logits.argmax(axis=-1) == labels[: len(logits)]).mean()
print(f"{len(logits)} samples on {runner.runtime.flavour}: {right:.2%} right")
