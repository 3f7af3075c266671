"""bmm, baddbmm and einsum become matmul, and compute what they did."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.graphs import TARGETS, calls, checked
from torch import Tensor

from tokexport.graph_passes.torch_passes.canonicalize.products_as_matmul import ProductsAsMatmul

PASSES = (ProductsAsMatmul(),)

#: Each takes a (2, 3, 4, 5) and b (2, 3, 6, 5).
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bmm": lambda a, b: torch.bmm(a[0], b[0].mT),
    "baddbmm": lambda a, b: torch.baddbmm(b[0, :, :4, :1], a[0], b[0].mT),
    "baddbmm, scaled": lambda a, b: torch.baddbmm(b[0, :, :4, :1], a[0], b[0].mT, beta=2, alpha=3),
    "baddbmm, of no term": lambda a, b: torch.baddbmm(b[0, :, :4, :1] / 0, a[0], b[0].mT, beta=0),
    "attention's first": lambda a, b: torch.einsum("bhid,bhjd->bhij", a, b),
    "attention's second": lambda a, b: torch.einsum("bhij,bhjd->bhid", a.mT @ a, b[..., :5, :]),
    "heads behind": lambda a, b: torch.einsum(
        "bnhd,bmhd->bhnm", a.transpose(1, 2), b.mT.mT.transpose(1, 2)
    ),
    "dots": lambda a, b: torch.einsum("...id,...jd->...ij", a, b),
    "dots of two ranks": lambda a, b: torch.einsum("...id,jd->...ij", a, b[0, 0]),
    "in silence": lambda a, b: torch.einsum("bhid, bhjd", a, b),
    "dots in silence": lambda a, b: torch.einsum("...id, ...jd", a, b),
    "turned result": lambda a, b: torch.einsum("bhid,bhjd->jhib", a, b),
    "of all heads": lambda a, b: torch.einsum("bhid,bhjd->bij", a, b),
    "of several letters": lambda a, b: torch.einsum("bhid,bhje->bijde", a, b),
    "of single letters": lambda a, b: torch.einsum("bid,bjd->bij", a[:, 0], b[:, 1]),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_is_a_matmul(name: str) -> None:
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 6, 5)
    rewritten = checked(PRODUCTS[name], a, b, passes=PASSES, targets=TARGETS, tolerance=2e-6)
    found = calls(rewritten)
    assert found["aten.matmul"] == 1 + name.startswith("attention's second")
    assert not {"aten.bmm", "aten.baddbmm", "aten.einsum"} & set(found)


KEPT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a sum within one": lambda a, b: torch.einsum("bhid,bhjd->bhj", a, b),
    "a diagonal": lambda a, b: torch.einsum("ii,ij->ij", a[0, 0, :, :4], b[0, 0, :4]),
    "an outer product": lambda a, b: torch.einsum("i,j->ij", a[0, 0, :, 0], b[0, 0, :, 0]),
    "nothing summed": lambda a, b: torch.einsum("bhid,bhid->bhid", a, b[:, :, :4]),
    "all summed": lambda a, b: torch.einsum("i,i->", a[0, 0, 0], b[0, 0, 0]),
    "three": lambda a, b: torch.einsum("bhid,bhjd,d->bhij", a, b, b[0, 0, 0]),
    "one": lambda a, b: torch.einsum("bhid->bdih", a),
    "an axis that is spread": lambda a, b: torch.einsum("bhid,bhjd->bhij", a[:, :1], b),
}


@pytest.mark.parametrize("name", KEPT)
def test_anything_else_stays(name: str) -> None:
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 6, 5)
    rewritten = checked(KEPT[name], a, b, passes=PASSES, tolerance=2e-6)
    assert calls(rewritten)["aten.einsum"] == 1
