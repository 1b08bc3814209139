"""Attention of transformers' modules through our `View`: the functions that its interfaces call, and what they read.

While a network of transformers' computes, a `Serving` says which view, which layer and which positions are meant; it
is entered again when a checkpointed layer is computed a second time. A network asks for attention in one of three ways:

    interface     its modules look up a function in transformers' AttentionInterface: ours asks the view
    sdpa          its modules call torch's scaled_dot_product_attention themselves: that call is answered by the view
    mask          its modules multiply queries and keys themselves: they get the view's rule as a dense mask

ALiBi is a number for each head and key that is added to the scores. The view gets it as two more columns of q and k,
whose product is that number; so packing, shared prefixes and the cache need no line for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lorikeet.ops.attention import PackedView, View, visible

NAME = "lorikeet"  # of our functions in transformers' interfaces
UNMASKED = "lorikeet-without-mask"  # the same attention, for which transformers makes no mask
TILE = 32  # the compiled kernel's tiles are so wide

Way = Literal["interface", "sdpa", "mask", "padded"]


class CannotView(Exception):
    """The network asks for attention that a view does not compute; the reason is the message."""


@dataclass(frozen=True)
class Asked:
    """One call of attention, as seen while the network was looked at; of a mask: layer -1."""

    layer: int
    kv_heads: int
    heads: int
    width: int  # of a key, with the columns of a bias


@dataclass(frozen=True)
class Serving:
    """What attention reads. `layer` is -1 outside of the layers."""

    view: View | None
    positions: Tensor
    way: Way
    tables: dict[int, Tensor] = field(default_factory=dict)  # by layer: a bias [H, n] by position
    layer: int = -1
    twice: int = 0  # so many first layers are computed again for their gradients
    asked: list[Asked] | None = None  # filled instead of computing


_now: ContextVar[Serving | None] = ContextVar("serving", default=None)


def now() -> Serving | None:
    """What is being served, if a network of transformers' computes at all."""
    return _now.get()


@contextmanager
def entered(serving: Serving) -> Iterator[None]:
    """While the block runs, attention reads `serving`."""
    token = _now.set(serving)
    try:
        if serving.way == "sdpa" and serving.layer >= 0:
            with _Sdpa():
                yield
        else:
            yield
    finally:
        _now.reset(token)


def at_layer(serving: Serving, layer: int) -> Serving:
    """The same, inside a layer."""
    return replace(serving, layer=layer)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """For AttentionInterface: query [1, H, T, E], key and value [1, K, T, E] -> [1, T, H, E]. The mask is what `mask`
    gave: a number that says the window, 0 for none; without one, `sliding_window` says it."""
    if others.get("s_aux") is not None:
        raise CannotView("attention sinks")
    if attention_mask is None:
        window = sliding_window
    elif attention_mask.dtype == torch.int64:
        window = int(attention_mask.flatten()[0]) or None
    else:
        raise CannotView("a mask of the network's own")
    out = _attend(query, key, value, scaling, window=window, softcap=softcap)
    return out[None], None


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = None,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    dtype: torch.dtype = torch.float32,
    config: Any = None,
    **_others: Any,
) -> Tensor:
    """For AttentionMaskInterface: the window as a number [1, 1, 1, 1] int64, or the view's rule, to be added to scores
    [1, 1, T, T]."""
    serving = _now.get()
    assert serving is not None and batch_size == 1 and q_length == kv_length
    if use_vmap:
        raise CannotView("a mask of the network's own")
    if local_size is not None and local_size == getattr(config, "attention_chunk_size", None):
        raise CannotView("attention in chunks")
    if serving.way == "interface":
        return torch.tensor(local_size or 0, dtype=torch.int64).view(1, 1, 1, 1)
    assert serving.way == "mask" and isinstance(serving.view, PackedView)
    if serving.asked is not None:
        serving.asked.append(Asked(-1, 0, 0, 0))
    seen = visible(serving.view.visible_until.cpu(), serving.view.positions.cpu(), local_size)
    hidden = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return hidden[None, None].to(serving.positions.device)


def by_position(bias: Tensor, positions: Tensor) -> Tensor:
    """ALiBi [..., T] that a network made for places in the row, for the positions of the row's tokens."""
    return bias.index_select(-1, positions.to(bias.device))


class _Sdpa(TorchFunctionMode):
    """Answers torch's scaled_dot_product_attention while it is the mode."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return _sdpa(*args, **kwargs) if func is F.scaled_dot_product_attention else func(*args, **kwargs)


def _sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As torch's, for a causal row: -> [1, H, T, E]. The mask's last row, which sees all, holds the bias."""
    serving = _now.get()
    assert serving is not None
    if attn_mask is None and not is_causal and query.shape[2] > 1:
        raise CannotView("attention that is not causal")
    bias = None
    if attn_mask is not None and attn_mask.is_floating_point():
        bias = _table(serving, attn_mask[0, :, -1], query.shape[1])
    return _attend(query, key, value, scale, bias=bias).transpose(0, 1)[None]


def _table(serving: Serving, last: Tensor, heads: int) -> Tensor:
    """The bias [T, H] of the row's tokens, from that of a text as long as the row: `last` [H or 1, T].

    While decoding, the row is shorter than the texts: then the longest table so far is used, and continued linearly."""
    tables, layer, positions = serving.tables, serving.layer, serving.positions
    last = last.detach().expand(heads, -1)
    if isinstance(serving.view, PackedView):
        return by_position(last, positions).T
    if layer not in tables or tables[layer].shape[-1] < last.shape[-1]:
        tables[layer] = last
    table = tables[layer]
    slope = table[:, 1:2] - table[:, :1] if table.shape[-1] > 1 else torch.zeros_like(table)
    known = positions.clamp(max=table.shape[-1] - 1)
    return (by_position(table, known) + slope * (positions - known).to(slope.dtype)).T


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    *,
    window: int | None = None,
    softcap: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """query [1, H, T, E], key and value [1, K, T, E], bias [T, H] by key -> [T, H, E of the values]."""
    serving = _now.get()
    assert serving is not None
    if query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise CannotView("queries and keys of different texts")
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if bias is not None:
        q, k, v = _with_bias(q, k, v, bias, scale)
    width, wanted = q.shape[-1], value.shape[-1]
    v = v if v.shape[-1] == width else F.pad(v, (0, width - v.shape[-1]))
    if serving.asked is not None:
        serving.asked.append(Asked(serving.layer, k.shape[1], q.shape[1], width))
        return q.new_empty(*q.shape[:2], wanted)
    assert serving.view is not None
    if not isinstance(serving.view, PackedView):
        q = q.contiguous()
    out = serving.view.attend(serving.layer, q, k, v, scale=scale, window=window, softcap=softcap)
    return out if wanted == width else out[..., :wanted]


def _with_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Two more columns: the bias beside k [T, H, E], 1 / scale beside q. In 16 bits 1 / scale is a sum of two numbers,
    so that the product is the bias as the network rounds it."""
    heads, width = q.shape[1], q.shape[2]
    if k.shape[1] != heads:
        k, v = (part.repeat_interleave(heads // part.shape[1], dim=1) for part in (k, v))
    upper = torch.tensor(1 / scale, dtype=q.dtype).item()
    lower = 1 / scale - upper
    more = -(width + 2) % TILE if width % TILE == 0 else width % 2
    ones = torch.tensor([upper, lower], dtype=q.dtype, device=q.device).expand(*q.shape[:2], 2)
    beside = bias.to(k.dtype)[:, :, None].expand(-1, -1, 2)
    return F.pad(torch.cat([q, ones], -1), (0, more)), F.pad(torch.cat([k, beside], -1), (0, more)), v
