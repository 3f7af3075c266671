"""Spells out, while a model is traced, calls that the tracer does not follow on symbolic sizes.

Before → after::

    pad_sequence([a (u,), b (v,)])     stack of each at min(0 … max(u, v) - 1, its last), 0 beyond
    range(0, n)                        arange(0, n + 1)
    linspace(a, b, n)                  a + i · d for i < n // 2, b - (n - 1 - i) · d beyond
    sparse_coo_tensor((i, j), v, …)    a dense matrix: one-hot rows of i, times v, times those of j
    sparse.mm(a, b), a.coalesce()      a @ b, a
    x.data = value                     x.copy_(value)
    cov(x), corrcoef(x)                products of the rows less their means

``cov`` branches on whether a count, a tensor of its own, is positive: no data decide it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from tokexport.graph_passes.torch_passes.graph.calls import base_name

#: A sparse matrix of more numbers is not made dense.
_LARGEST: Final = 1 << 24


class SpelledOut(TorchFunctionMode):
    """Replaces some calls that cannot be traced by calls that can."""

    def __init__(self) -> None:
        super().__init__()
        self._dense: set[int] = set()
        self._held: list[Tensor] = []

    def __enter__(self) -> Any:
        """Begins; patches what no mode meets: ``torch.range`` and ``torch.sparse.FloatTensor``."""
        setattr(torch, "range", _range)  # noqa: B010
        setattr(torch.sparse, "FloatTensor", self._float_tensor)  # noqa: B010
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        """Ends."""
        setattr(torch, "range", _OWN_RANGE)  # noqa: B010
        setattr(torch.sparse, "FloatTensor", _OWN_FLOAT_TENSOR)  # noqa: B010
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls a function, or its traceable equivalent."""
        name, kwargs = base_name(func), dict(kwargs or {})
        of = getattr(getattr(func, "__self__", None), "__name__", "")
        if name in ("__get__", "__set__") and of == "data":
            name = f"data{name}"
        instead = _INSTEAD.get(name)
        if instead is not None and _is_traced((args, kwargs)):
            found = instead(self, *args, **kwargs)
            if found is not NotImplemented:
                return found
        return func(*args, **kwargs)

    def _data(self, tensor: Any) -> Any:
        return tensor.detach()

    def _set_data(self, tensor: Any, value: Any) -> Any:
        """``x.data = value``; a view of x that was taken before would keep its numbers in eager."""
        fits = (tensor.shape, tensor.dtype) == (value.shape, value.dtype)
        if not fits:
            return NotImplemented
        tensor.copy_(value)
        return None

    def _pad_sequence(
        self,
        sequences: Sequence[Tensor],
        batch_first: bool = False,
        padding_value: float = 0.0,
        padding_side: str = "right",
    ) -> Any:
        if padding_side != "right" or not sequences:
            return NotImplemented
        most: Any = sequences[0].shape[0]
        for one in sequences[1:]:
            most = torch.sym_max(most, one.shape[0])
        places = torch.arange(most)
        rows = []
        for one in sequences:
            own = one.index_select(0, places.clamp(max=one.shape[0] - 1))
            there = (places < one.shape[0]).view(-1, *[1] * (one.dim() - 1))
            rows.append(torch.where(there, own, torch.full((), padding_value, dtype=one.dtype)))
        return torch.stack(rows, 0 if batch_first else 1)

    def _topk(
        self, input: Tensor, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True
    ) -> Any:
        """The k best, as many as a number of the data says; of equal ones torch picks any."""
        if not isinstance(k, torch.SymInt):
            return NotImplemented
        torch._check(k <= input.shape[dim])  # sliced, more would be as many as there are
        values, order = torch.sort(input, dim=dim, descending=largest)
        cut: list[Any] = [slice(None)] * input.dim()
        cut[dim] = slice(0, k)
        return torch.return_types.topk((values[tuple(cut)], order[tuple(cut)]))

    def _one_hot(self, tensor: Tensor, num_classes: int = -1) -> Any:
        if num_classes < 1 or all(isinstance(size, int) for size in tensor.shape):
            return NotImplemented
        return (tensor[..., None] == torch.arange(num_classes)).to(torch.int64)

    def _linspace(
        self, start: Any, end: Any, steps: Any, *, dtype: Any = None, **options: Any
    ) -> Any:
        """As many numbers as the data says, each half counted from its own end, as torch does."""
        numbers = int, float, torch.SymInt, torch.SymFloat
        if not isinstance(steps, torch.SymInt) or not isinstance(start, numbers):
            return NotImplemented
        dtype = dtype or torch.get_default_dtype()
        if not isinstance(end, numbers) or not dtype.is_floating_point:
            return NotImplemented
        first, last, count = (cast("float", one) for one in (start, end, steps))
        step = (last - first) / cast("float", torch.sym_max(steps - 1, 1))
        places = torch.arange(count, dtype=dtype)
        ahead, back = first + places * step, last - (count - 1 - places) * step
        half = cast("float", torch.sym_max(steps // 2, 1))
        return torch.where(places < half, ahead, back)

    def _cov(
        self, input: Any, *, correction: int = 1, fweights: Any = None, aweights: Any = None
    ) -> Any:
        weighted = fweights is not None or aweights is not None
        if weighted or input.dim() > 2 or not input.is_floating_point():
            return NotImplemented
        rows = input if input.dim() == 2 else input.reshape(1, -1)
        rows = rows - rows.mean(1, keepdim=True)
        count = max(rows.shape[1] - correction, 0)
        return (rows @ rows.transpose(0, 1) / count).squeeze()

    def _corrcoef(self, input: Any) -> Any:
        cov = self._cov(input)
        if cov is NotImplemented:
            return NotImplemented
        if cov.dim() == 0:
            return cov / cov
        deviation = cov.diagonal().sqrt()
        return (cov / deviation[:, None] / deviation).clamp(-1, 1)

    def _sparse(self, indices: Any, values: Any = None, size: Any = None, **options: Any) -> Any:
        """A sparse matrix, dense; equal places add up, as they do in what reads it."""
        if not isinstance(indices, Tensor) or not isinstance(values, Tensor) or size is None:
            return NotImplemented
        sizes = [*size]
        known = [each for each in sizes if isinstance(each, int)]
        if len(sizes) != 2 or values.dim() != 1 or torch.Size(known).numel() > _LARGEST:
            return NotImplemented
        values = values.to(options.get("dtype") or values.dtype)
        rows, columns = (
            (at[:, None] == torch.arange(length)).to(values.dtype)
            for at, length in zip(indices, sizes, strict=True)
        )
        found = (rows * values[:, None]).transpose(0, 1) @ columns
        self._dense.add(id(found))
        self._held.append(found)
        return found

    def _float_tensor(self, *args: Any) -> Any:
        found = self._sparse(*args) if _is_traced(args) else NotImplemented
        return _OWN_FLOAT_TENSOR(*args) if found is NotImplemented else found

    def _product(self, input: Any, mat2: Any, *rest: Any, **options: Any) -> Any:
        """``torch.sparse.mm``; other functions of that name are left alone."""
        if id(input) not in self._dense or rest or options:
            return NotImplemented
        return torch.matmul(input, mat2)

    def _same(self, input: Any, *rest: Any, **options: Any) -> Any:
        return input if id(input) in self._dense else NotImplemented

    def _sum(self, input: Any, dim: Any = None, dtype: Any = None) -> Any:
        if id(input) not in self._dense:
            return NotImplemented
        found = torch.sum(input, dim, dtype=dtype) if dim is not None else torch.sum(input)
        self._dense.add(id(found))
        self._held.append(found)
        return found

    def _turned(self, input: Any, *rest: Any, **options: Any) -> Any:
        if id(input) not in self._dense:
            return NotImplemented
        found = torch.transpose(input, 0, 1)
        self._dense.add(id(found))
        self._held.append(found)
        return found


_OWN_FLOAT_TENSOR: Final = torch.sparse.FloatTensor  # type: ignore[attr-defined]
_OWN_RANGE: Final = torch.range


def _range(start: Any = 0, end: Any = None, step: Any = 1, **options: Any) -> Tensor:
    """``torch.range``, which counts its end in, up to a number that the data says."""
    if step != 1 or not any(isinstance(one, torch.SymInt) for one in (start, end)):
        return _OWN_RANGE(start, end, step, **options)
    options["dtype"] = options.get("dtype") or torch.get_default_dtype()
    return torch.arange(start, end + 1, **options)


def _is_traced(tree: Any) -> bool:
    kinds = FakeTensor, torch.SymInt
    return any(isinstance(one, kinds) for one in pytree.tree_leaves(tree))


_INSTEAD: Final[Mapping[str, Callable[..., Any]]] = {
    "data__get__": SpelledOut._data,
    "data__set__": SpelledOut._set_data,
    "pad_sequence": SpelledOut._pad_sequence,
    "sparse_coo_tensor": SpelledOut._sparse,
    "mm": SpelledOut._product,
    "_sparse_mm": SpelledOut._product,
    "topk": SpelledOut._topk,
    "linspace": SpelledOut._linspace,
    "cov": SpelledOut._cov,
    "corrcoef": SpelledOut._corrcoef,
    "one_hot": SpelledOut._one_hot,
    "coalesce": SpelledOut._same,
    "to_dense": SpelledOut._same,
    "_sparse_sum": SpelledOut._sum,
    "t": SpelledOut._turned,
}
