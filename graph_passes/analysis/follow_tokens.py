"""Follows tokens through a run of a traced graph, from the picture to the last block.

Beside each value runs another of its shape, which says of each number the token that it belongs
to. What moves numbers moves these too, by the same call; what computes row by row keeps them; what
joins rows joins their tokens::

    image (B, 3, H, W)   pixels             conv, linear        patches, (B, N, C)
    view, permute, cat   as the values      softmax(q kᵀ) v     the tokens of q
    merge_tokens         unions             gather_tokens       as the values

A value whose tokens are not known has none, and is left out of what is joined; a residual sum gets
them back from its other part. Rows that are not from the picture, like a class token, become
tokens without patches where they are joined to others.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg

from tokexport.graph_passes.analysis.token_ids import NOTHING, TokenIds
from tokexport.graph_passes.ops.ops import NAMESPACE
from tokexport.graph_passes.torch_passes.graph.calls import argument, operator_name

_CHANNELS: Final = (1, 3, 4)
#: Calls that move numbers, and compute nothing.
_MOVES: Final = frozenset(
    f"aten.{name}"
    for name in (
        *("view", "reshape", "_unsafe_view", "permute", "transpose", "t", "expand", "slice"),
        *("select", "squeeze", "unsqueeze", "clone", "contiguous", "alias", "flip", "roll"),
        *("index", "index_select", "gather", "unbind", "split", "split_with_sizes", "chunk"),
        *("flatten", "unflatten", "repeat", "narrow", "movedim", "detach", "pixel_unshuffle"),
        *("take_along_dim", "swapaxes", "expand_as", "view_as"),
    )
) | {f"{NAMESPACE}.gather_tokens"}
#: Calls that join the rows along some axes.
_REDUCTIONS: Final = frozenset(f"aten.{name}" for name in ("mean", "sum", "amax", "amin"))
_PRODUCTS: Final = frozenset(f"aten.{name}" for name in ("matmul", "bmm", "mm"))
_SUMS: Final = frozenset(f"aten.{name}" for name in ("add", "sub"))
#: Calls of which a number of the result is not at the place of the number that it comes from.
_REORDER: Final = frozenset(
    f"aten.{name}"
    for name in ("sort", "argsort", "topk", "cumsum", "cumprod", "scatter", "scatter_reduce")
    + ("scatter_add", "index_put", "masked_scatter", "index_add", "einsum")
)


class FollowTokens(Interpreter):
    """Runs an unlifted graph, and follows the tokens of its picture.

    Args:
        module: The graph.
        wanted: The names of the values whose tokens are kept.
        within: The names of the values of the last block.

    Attributes:
        ids: The tokens that were met.
        kept: The tokens of each wanted value that has some, in its shape, by its name.
        last: The tokens of the last block's last value of (B, N, C) that has some, (B, N); None
            without one.
    """

    def __init__(
        self, module: GraphModule, wanted: Iterable[str], within: Iterable[str] = ()
    ) -> None:
        super().__init__(module)
        self.ids = TokenIds()
        self.kept: dict[str, Tensor] = {}
        self.last: Tensor | None = None
        self._wanted, self._within = frozenset(wanted), frozenset(within)
        self._of: dict[Node, Tensor] = {}
        self._in_pixels: set[Node] = set()
        self._width = 0

    def run_node(self, n: Node) -> Any:
        """Runs a call, and finds the tokens of its result."""
        with torch.no_grad():
            result = super().run_node(n)
            tokens = self._tokens(n, result)
        if isinstance(tokens, Tensor):
            self._of[n] = tokens
            if n.name in self._wanted:
                self.kept[n.name] = tokens
            if n.name in self._within and tokens.ndim == 3 and _is_by_rows(tokens):
                self.last = tokens[..., 0]
        for done in self.user_to_last_uses.get(n, ()):
            self._of.pop(done, None)
        return result

    def _tokens(self, node: Node, result: Any) -> Tensor | None:
        if isinstance(result, tuple | list) and operator_name(node) in _MOVES:
            return self._moved(node)
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return None
        if node.op == "placeholder":
            return self._pixels(node, result)
        if node.op != "call_function" or node.target is operator.getitem:
            return self._of.get(node)  # of a part, what its split found
        sources = [part for part in node.all_input_nodes if part in self._of]
        if not sources:
            return None
        found = self._rule(node, result)
        from_pixels = any(part in self._in_pixels for part in sources)
        if found is not None and from_pixels and operator_name(node) not in _LAYERS:
            self._in_pixels.add(node)
        return found

    def _rule(self, node: Node, result: Tensor) -> Tensor | None:
        name = operator_name(node)
        if name in _MOVES:
            return self._moved(node)
        if name in _RULES:
            return _RULES[name](self, node, result)
        if name in _REDUCTIONS:
            return self._reduced(node, result)
        if name in _PRODUCTS:
            return self._multiplied(node, result)
        if name in _REORDER:
            return None
        return self._elementwise(node, result, joins=name in _SUMS)

    def _pixels(self, node: Node, image: Tensor) -> Tensor | None:
        """Numbers the pixels of a picture, (B, C, H, W) or (B, H, W, C)."""
        if image.ndim != 4:
            return None
        shape = image.shape
        if shape[1] in _CHANNELS:
            pixels = torch.arange(shape[2] * shape[3]).view(1, 1, shape[2], shape[3])
            self._width = shape[3]
        elif shape[3] in _CHANNELS:
            pixels = torch.arange(shape[1] * shape[2]).view(1, shape[1], shape[2], 1)
            self._width = shape[2]
        else:
            return None
        self._in_pixels.add(node)
        return pixels.expand(shape)

    def _moved(self, node: Node) -> Tensor | None:
        """Moves the tokens of the first argument as its values were moved."""
        moved = node.all_input_nodes[0]
        if node.args[0] is not moved or moved not in self._of:
            return None

        def given(part: Node) -> Any:
            return self._of[moved] if part is moved else self.env[part]

        args, kwargs = map_arg(node.args, given), map_arg(node.kwargs, given)
        try:
            found = node.target(*args, **kwargs)  # type: ignore[operator]
        except (RuntimeError, NotImplementedError):  # no kernel for whole numbers
            return None
        if isinstance(found, Tensor):
            return found
        for user in node.users:  # a part of it each
            if user.target is operator.getitem and isinstance(user.args[1], int):
                self._of[user] = found[user.args[1]]
                if moved in self._in_pixels:
                    self._in_pixels.add(user)
        return None

    def _elementwise(self, node: Node, result: Tensor, joins: bool = False) -> Tensor | None:
        """Returns the tokens of the first operand of the result's shape, else of any operand."""
        known = [self._of[part] for part in node.all_input_nodes if part in self._of]
        whole = [one for one in known if one.shape == result.shape]
        if joins and len(whole) == 2 and not torch.equal(*whole):
            return self._joined_rows(whole[0], whole[1])
        if whole:
            return whole[0]
        try:
            return known[0].expand(result.shape)
        except RuntimeError:
            return None

    def _joined_rows(self, one: Tensor, other: Tensor) -> Tensor | None:
        """Joins two values row by row where both are by rows; keeps the first elsewhere."""
        if not (_is_by_rows(one) and _is_by_rows(other)):
            return one
        first, second = one[..., 0].flatten().tolist(), other[..., 0].flatten().tolist()
        rows = [self.ids.union(pair) for pair in zip(first, second, strict=True)]
        return _as_rows(torch.tensor(rows).view(one.shape[:-1]), one.shape)

    def _layer(self, node: Node, result: Tensor) -> Tensor | None:
        """Follows a linear layer: rows stay, pixels become patches, mixed rows are joined."""
        given = node.args[0] if operator_name(node) != "aten.addmm" else node.args[1]
        return self._computed(given, result) if isinstance(given, Node) else None

    def _computed(self, given: Node, result: Tensor) -> Tensor | None:
        tokens = self._of.get(given)
        if tokens is None:
            return None
        if given in self._in_pixels:
            return self._cut_patches(tokens, result)
        if not _is_by_rows(tokens):
            tokens = self._union_along(tokens, -1)[..., None]
        return _as_rows(tokens[..., 0], result.shape)

    def _cut_patches(self, pixels: Tensor, result: Tensor) -> Tensor | None:
        """Makes a token of each row of pixels (…, N, K), if they are the cells of a grid."""
        if self.ids.merged or pixels.ndim < 2:
            return None
        one = pixels.reshape(-1, pixels.shape[-1])
        images = pixels.shape[0] if pixels.ndim > 2 else 1
        one = one[: len(one) // images]
        corner = one.min(dim=-1).values
        tops, lefts = corner // self._width, corner % self._width
        rows, columns = tops.unique(), lefts.unique()
        cells = len(rows) * len(columns)
        if cells < 2 or not cells == len(corner) == len(corner.unique()):
            return None
        ids = self.ids.start(len(rows), len(columns))
        cell = torch.searchsorted(rows, tops) * len(columns) + torch.searchsorted(columns, lefts)
        return _as_rows(ids[cell].repeat(images).view(pixels.shape[:-1]), result.shape)

    def _convolved(self, node: Node, result: Tensor) -> Tensor | None:
        """Starts a grid of patches at a strided convolution; keeps tokens at one of their size."""
        given = node.args[0]
        if not isinstance(given, Node) or given not in self._of or result.ndim != 4:
            return None
        tokens = self._of[given]
        if given not in self._in_pixels and tokens.shape[2:] == result.shape[2:]:
            return tokens[:, :1].expand(result.shape)
        if self.ids.merged or result.shape[2] * result.shape[3] == 1:
            return None
        grid = self.ids.start(result.shape[2], result.shape[3])
        return grid.view(1, 1, *result.shape[2:]).expand(result.shape)

    def _multiplied(self, node: Node, result: Tensor) -> Tensor | None:
        """Follows a product: the rows of the left factor, or joins those of the right one."""
        left, right = node.args[0], node.args[1]
        if not isinstance(left, Node) or not isinstance(right, Node):
            return None
        if left in self._of:
            return self._computed(left, result)
        tokens, weights = self._of.get(right), self.env[left]
        if tokens is None or tokens.ndim != result.ndim or not _is_by_rows(tokens):
            return None
        if weights.shape[:-2] != tokens.shape[:-2]:
            return None
        rows = tokens[..., 0].flatten(0, -2).tolist()
        used = weights.flatten(0, -3) != 0
        unions = [
            self.ids.union(row[i] for i in torch.nonzero(one).flatten().tolist())
            for row, image in zip(rows, used, strict=True)
            for one in image
        ]
        return _as_rows(torch.tensor(unions).view(result.shape[:-1]), result.shape)

    def _attended(self, node: Node, result: Tensor) -> Tensor | None:
        query = node.args[0]
        return self._computed(query, result) if isinstance(query, Node) else None

    def _reduced(self, node: Node, result: Tensor) -> Tensor | None:
        """Joins what is reduced; rows that are one token along the axis keep it."""
        given = node.args[0]
        dims = argument(node, "dim") if len(node.args) > 1 or node.kwargs else None
        if not isinstance(given, Node) or given not in self._of or given in self._in_pixels:
            return None
        if dims is None or isinstance(dims, list | tuple) and len(dims) != 1:
            return None
        dim = dims if isinstance(dims, int) else dims[0]
        tokens = self._of[given]
        low, high = tokens.amin(dim, keepdim=True), tokens.amax(dim, keepdim=True)
        if torch.equal(low, high):
            found = low
        elif tokens.ndim > 1 and dim % tokens.ndim != tokens.ndim - 1 and _is_by_rows(tokens):
            joined = self._union_along(tokens[..., 0], dim % tokens.ndim)
            found = joined.unsqueeze(dim % tokens.ndim)[..., None].expand(low.shape)
        else:
            return None
        return found if found.shape == result.shape else found.squeeze(dim)

    def _union_along(self, tokens: Tensor, dim: int) -> Tensor:
        """Joins the tokens along an axis, which goes."""
        lines = tokens.movedim(dim, -1)
        flat = [self.ids.union(line) for line in lines.reshape(-1, lines.shape[-1]).tolist()]
        return torch.tensor(flat).view(lines.shape[:-1])

    def _joined(self, node: Node, result: Tensor) -> Tensor | None:
        """Follows a concatenation: what has no tokens becomes rows that hold no patch."""
        parts: Any = node.args[0]
        dim = int(argument(node, "dim")) % result.ndim
        if any(part in self._in_pixels for part in parts if isinstance(part, Node)):
            return None
        if dim == result.ndim - 1:
            nodes = (part for part in parts if isinstance(part, Node))
            known = [self._of[part] for part in nodes if part in self._of]
            rows = [one for one in known if _is_by_rows(one)]
            return _as_rows(rows[0][..., 0], result.shape) if rows else None
        found = []
        for part in parts:
            shape = self.env[part].shape
            if part in self._of:
                found.append(self._of[part])
                continue
            size = [1] * len(shape)
            size[dim] = shape[dim]
            found.append(self.ids.special(shape[dim]).view(size).expand(shape))
        joined = torch.cat(found, dim)
        return _as_rows(joined[..., 0], joined.shape) if _is_by_rows(joined) else joined

    def _merged(self, node: Node, result: Tensor) -> Tensor | None:
        """Follows ``merge_tokens``: the kept rows of a, then b with its sources joined in."""
        arguments: Any = node.args
        a, b, kept, src, dst, mode = arguments
        if a not in self._of or b not in self._of:
            return None
        own, into = self._of[a][..., 0], self._of[b][..., 0].tolist()
        rest = own.gather(1, self.env[kept])
        if mode != "none":
            moved = own.gather(1, self.env[src]).tolist()
            self._put(into, self.env[dst].tolist(), moved, keep=True)
        return _as_rows(torch.cat([rest, torch.tensor(into)], dim=1), result.shape)

    def _scattered(self, node: Node, result: Tensor) -> Tensor | None:
        """Follows ``scatter_tokens``: rows that meet are joined, and ``none`` overwrites."""
        arguments: Any = node.args
        onto, index, moved, mode, include_self = arguments
        if moved not in self._of:
            return None
        nothing = torch.full(result.shape[:2], NOTHING)
        into = self._of[onto][..., 0] if onto in self._of else nothing
        rows = into.tolist()
        places, sources = self.env[index].tolist(), self._of[moved][..., 0].tolist()
        self._put(rows, places, sources, keep=bool(include_self) and mode != "none")
        return _as_rows(torch.tensor(rows), result.shape)

    def _put(
        self,
        rows: list[list[int]],
        places: list[list[int]],
        sources: list[list[int]],
        keep: bool,
    ) -> None:
        """Joins sources into rows at places, in every image; without ``keep`` they replace them."""
        for row, at, tokens in zip(rows, places, sources, strict=True):
            met: dict[int, list[int]] = {}
            for place, token in zip(at, tokens, strict=True):
                met.setdefault(place, [row[place]] if keep else []).append(token)
            for place, several in met.items():
                row[place] = self.ids.union(several)

    def _chosen(self, node: Node, result: Tensor) -> Tensor | None:
        """Follows ``where``, number by number where both sides have tokens."""
        arguments: Any = node.args
        condition, one, other = arguments
        if one in self._of and other in self._of:
            both = self._of[one], self._of[other]
            return torch.where(self.env[condition], *both)
        return self._elementwise(node, result)


_Rule = Callable[[FollowTokens, Node, Tensor], Tensor | None]
_LAYERS: Final = frozenset(
    ("aten.linear", "aten.addmm", "aten.convolution", "aten.conv2d", *_PRODUCTS)
)
_RULES: Final[dict[str, _Rule]] = {
    "aten.linear": FollowTokens._layer,
    "aten.addmm": FollowTokens._layer,
    "aten.convolution": FollowTokens._convolved,
    "aten.conv2d": FollowTokens._convolved,
    "aten.cat": FollowTokens._joined,
    "aten.where": FollowTokens._chosen,
    "aten.scaled_dot_product_attention": FollowTokens._attended,
    f"{NAMESPACE}.sized_attention": FollowTokens._attended,
    f"{NAMESPACE}.merge_tokens": FollowTokens._merged,
    f"{NAMESPACE}.scatter_tokens": FollowTokens._scattered,
}


def _is_by_rows(tokens: Tensor) -> bool:
    """Returns whether all numbers along the last axis belong to one token."""
    if tokens.stride(-1) == 0:  # it was spread along the axis
        return True
    return bool((tokens == tokens[..., :1]).all())


def _as_rows(rows: Tensor, shape: Sequence[int]) -> Tensor | None:
    """Gives every number of a row (…,) the row's token; None where the shapes do not fit."""
    if tuple(rows.shape) != tuple(shape[:-1]):
        return None
    return rows[..., None].expand(*shape)
