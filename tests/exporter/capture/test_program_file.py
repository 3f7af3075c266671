"""Programs whose tensors are views of others are written whole."""

from __future__ import annotations

import io

import torch
from torch import Tensor, nn

from tokexport.exporter.capture.program_file import program_bytes


class OfViews(nn.Module):
    """Holds parts of one storage, a transposed one, and a part of another as a parameter."""

    def __init__(self) -> None:
        super().__init__()
        base = torch.arange(12.0).view(3, 4)
        self.register_buffer("first", base[:2])
        self.register_buffer("last", base[2:], persistent=False)
        self.register_buffer("turned", torch.arange(8.0).view(2, 4).t())
        self.weight = nn.Parameter(torch.randn(6, 4)[1:3])

    def forward(self, x: Tensor) -> Tensor:
        """Takes (2, 4)."""
        return x * self.first + self.last + x @ self.turned @ self.weight


def test_parts_and_turned_tensors_come_back() -> None:
    model, x = OfViews().eval(), torch.randn(2, 4)
    program = torch.export.export(model, (x,))
    loaded = torch.export.load(io.BytesIO(program_bytes(program)))
    for found in (loaded, program):
        held = {**found.state_dict, **found.constants}
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            torch.testing.assert_close(held[name], value, rtol=0, atol=0)
        torch.testing.assert_close(found.module()(x), model(x))  # sums may end in another bit
    assert isinstance(program.state_dict["weight"], nn.Parameter)
    assert model.weight.untyped_storage().nbytes() == 96  # what was given stays a view
