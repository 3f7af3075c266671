"""Declares the arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def _known_target(value: str | None) -> str | None:
    """Refuses an unknown target."""
    from tokexport.exporter.backends.known import BACKENDS

    if value is not None and value not in BACKENDS:
        raise typer.BadParameter(
            f"there is no target '{value}'. Pass one of {', '.join(BACKENDS)}."
        )
    return value


def target_option(text: str) -> Any:
    """Returns an option that takes a target.

    Args:
        text: Its help.
    """
    return typer.Option(help=text, metavar="[ort|openvino|trt]", callback=_known_target)


ModelSource = Annotated[
    str,
    typer.Argument(
        help="model.pt, model.pt2, package.module:factory, a training checkpoint (with "
        "--builder), timm:NAME, or a transformers folder."
    ),
]
Bundle = Annotated[Path, typer.Argument(help="The folder that compile wrote.")]
CodePath = Annotated[
    list[Path] | None, typer.Option(help="Folders searched for your Python modules.")
]
Inputs = Annotated[
    Path | None,
    typer.Option(
        help="Real samples: an .npz along the leading axis of each array, with 'labels' as "
        "their classes; a folder of pictures, its subfolders their classes; a .csv of files and "
        "labels; or a picture."
    ),
]
Preprocess = Annotated[
    str | None,
    typer.Option(
        help="From a picture to the input, in place of what the source says: "
        "size=224,crop=0.9,mean=imagenet,interpolation=bicubic."
    ),
]
EmbedPreprocess = Annotated[
    str | None,
    typer.Option(
        help="Put preprocessing into the artifact, which then takes bytes: normalise, or 480x640, "
        "height and width of pictures that it resizes too."
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(help="Names of the model's classes, one a line, in the order of its output."),
]
Samples = Annotated[
    int | None, typer.Option(help="Use this many samples of --inputs, evenly spaced.")
]
InputShape = Annotated[
    str | None, typer.Option(help="Shape of the only input, batch first: 1,3,224,224.")
]
Batch = Annotated[int | None, typer.Option(help="Samples that the model takes at once.")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="Weights for a model that a factory or timm builds.")
]
Builder = Annotated[
    str | None, typer.Option(help="package.module:factory that builds a checkpoint's model.")
]
TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="Let code inside the source run.")
]
TokenCap = Annotated[
    str | None,
    typer.Option(help="Room for tokens where the data decide how many: 64, or 64,32 by place."),
]
Constant = Annotated[
    list[str] | None,
    typer.Option(
        help="Fix an input: NAME=VALUE as JSON, or NAME for its example's value; may be repeated."
    ),
]
Threads = Annotated[
    int | None, typer.Option(help="The most threads for eager and the runtime; by default theirs.")
]
RequireKernels = Annotated[
    bool,
    typer.Option("--require-kernels", help="Fail where the target's native kernels do not load."),
]
PublicKey = Annotated[
    Path | None,
    typer.Option(metavar="PEM", help="Refuse a bundle that this key did not sign as it is."),
]
TrustedCertificates = Annotated[
    list[Path] | None,
    typer.Option(
        "--trusted-certificate",
        metavar="PEM",
        help="Refuse a bundle that no certificate from this one signed; may be repeated.",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of synthetic inputs.")]
Precision = Annotated[
    str, typer.Option(help="fp32; ort int8; openvino bf16, fp16, int8; trt fp16, bf16.")
]
Quantization = Annotated[
    str | None,
    typer.Option(help="Ranges of int8 for ort: dynamic, or static as measured on --inputs."),
]
WeightBits = Annotated[
    int | None,
    typer.Option(help="Bits of a weight in int8 for ort: 8, or 7 for processors without VNNI."),
]
RECIPE_HELP = "A token reduction to put in: tome:r=8, or a .toml or .json file."
Recipe = Annotated[str | None, typer.Option("--reduce", help=RECIPE_HELP)]
Restore = Annotated[
    bool, typer.Option("--restore", help="Put every token back where it is read behind a block.")
]
