"""Gives a language model fewer image features: a CLIP encoder and projector, reduced and shipped.

LLaVA-style models hand the hidden states of the encoder's second-to-last layer, without the class
token, to a small projector. Methods made for that select or merge the patches behind that layer;
what the language model takes is then a tenth or a quarter of the features, in fewer milliseconds.

The weights here are random: with trained ones, load them where ``Encoder`` is built.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

import tokexport

RECIPES = ("vtc-cls:tokens=16", "divprune:keep=0.098", "aim-merge:rounds=2")
LAYERS = 6


class Encoder(nn.Module):
    """Images (B, 3, 112, 112) → features (B, patches, 256) for a language model."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_tower = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=192,
                intermediate_size=768,
                num_hidden_layers=LAYERS,
                num_attention_heads=3,
                image_size=112,
                patch_size=8,
            )
        )
        self.mm_projector = nn.Sequential(nn.Linear(192, 256), nn.GELU(), nn.Linear(256, 256))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Returns the projected patches of the second-to-last layer."""
        states = self.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        features: Tensor = self.mm_projector(states[-2][:, 1:])
        return features


def main() -> None:
    """Reduces the encoder in three ways and compiles the first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("encoder-ort"))
    options = parser.parse_args()
    torch.manual_seed(0)
    encoder = Encoder().eval()
    image = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        print(f"unreduced: {encoder(image).shape[1]} features of an image")
        for recipe in RECIPES:
            reduced = tokexport.reduce(encoder, recipe, image)
            print(f"{recipe}: {reduced(image).shape[1]}")
    result = tokexport.compile(
        tokexport.reduce(encoder, RECIPES[0], image),
        image,
        "ort",
        output=options.output,
        force=True,
    )
    print(f"{result.bundle}: {result.status}")


if __name__ == "__main__":
    main()
