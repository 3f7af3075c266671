"""Measures what reductions cost on the digits, and puts the table in a guide with ``--write``.

The demo's ViT is trained without merging, then reduced without further training. Accuracy is that
of the bundle for ONNX Runtime on the test images.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from marked_parts import put_part

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "guides" / "reduce-a-plain-vit.md"
DEPTH = 5
RECIPES = {
    "ToMe": ("tome:r=1", "tome:r=2", "tome:r=3"),
    "MCTF": ("mctf:r=1,least=3", "mctf:r=2,least=3", "mctf:r=3,least=3"),
    "PiToMe": ("pitome:keep=0.9", "pitome:keep=0.8", "pitome:keep=0.7"),
}
HEADINGS = ("Method", "Recipe", "Tokens at the attentions", "MACs left", "Accuracy", "Same class")


def main() -> int:
    """Trains, reduces, compiles, prints, and writes where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="Replace the table in the guide.")
    parser.add_argument("--epochs", type=int, default=50)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "examples"))
    text = table(options.epochs)
    print(text)
    if options.write:
        put_part(PAGE, "digits", text)
    return 0


def table(epochs: int) -> str:
    """Returns the table in Markdown."""
    import torch
    from digits_demo import digits, train
    from digits_vit import DigitsViT

    torch.set_num_threads(1)
    train_x, test_x, train_y, test_y = digits(0)
    torch.manual_seed(0)
    model = train(DigitsViT(merge=(0,) * DEPTH), train_x, train_y, epochs)
    images, labels = test_x.numpy(), test_y.numpy()
    rows = [HEADINGS, tuple("---" for _ in HEADINGS)]
    plain, whole, tokens = compiled(model, images)
    rows.append(("none", "", tokens, "100 %", f"{(plain == labels).mean():.1%}", ""))
    for title, recipes in RECIPES.items():
        for recipe in recipes:
            import tokexport

            found, macs, tokens = compiled(tokexport.reduce(model, recipe, test_x[:1]), images)
            rows.append(
                (
                    title if recipe == recipes[0] else "",
                    f"`{recipe}`",
                    tokens,
                    f"{macs / whole:.0%}".replace("%", " %"),
                    f"{(found == labels).mean():.1%}",
                    f"{(found == plain).mean():.1%}",
                )
            )
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        f"{text}\n\nDigits of scikit-learn, {len(labels)} test images, a ViT of {DEPTH} blocks "
        "trained without merging; *Same class* is the share of images that keep the class the "
        "unreduced model gives them."
    )


def compiled(model: object, images: np.ndarray) -> tuple[np.ndarray, int, str]:
    """Compiles for ONNX Runtime; returns the classes of the images, the MACs and the tokens."""
    import torch
    from torch import nn

    import tokexport
    import tokexport.runtimes
    from tokexport.exporter.inspection.inspect import inspect

    assert isinstance(model, nn.Module)
    example = torch.from_numpy(images[:1])
    inspection = inspect(model, example, targets=())
    with tempfile.TemporaryDirectory() as folder:
        result = tokexport.compile(model, example, output=Path(folder) / "bundle")
        with tokexport.runtimes.load(result.bundle) as runner:
            (spec,) = runner.inputs
            logits = [next(iter(runner.run({spec.name: image[None]}).values())) for image in images]
    tokens = " ".join(str(one.tokens_in) for one in inspection.blocks)
    return np.concatenate(logits).argmax(axis=-1), sum(inspection.macs.values()), tokens


if __name__ == "__main__":
    sys.exit(main())
