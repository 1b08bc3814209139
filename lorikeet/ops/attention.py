"""Attention over a packed row, where one integer per token says who may see it.

Key k is seen by the queries q with `k <= q < visible_until[k]` (and, in a window, while their positions differ by
less than the window). Causal, packed and shared-prefix rows are that one rule, so no model has a mask branch.

The row is a forest laid out depth first, so what a few queries see is a few runs of keys: never a T x T mask. On a CPU
the compiled kernel (kernels/attention.cpp) works through those runs tile by tile; where it does not serve,
bucketed_attention.py does the same with batched matmuls. Both recompute the probabilities in backward and keep nothing
of size queries x keys. On CUDA the rule is FlexAttention's mask. Source: Dao 2023 (FlashAttention-2) for the formulas;
the packing is our own.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lorikeet.kernels import attention as compiled
from lorikeet.kernels.counting import count
from lorikeet.ops import bucketed_attention as bucketed

Prefix = tuple[Tensor, Tensor]  # a layer's keys and values [P, K, E] that stand before all it reads (see ops/prefix.py)


class View(Protocol):
    """What a query may see: a packed row while training and prefilling, a cache while decoding."""

    def lengths(self) -> Tensor:
        """[T] int64: how many tokens the text of each token has, of those that share a prefix the longest."""
        ...

    def wanted(self) -> Tensor | None:
        """Tokens [N] whose last states somebody reads: a network may leave those of others at zero. None: of all."""
        ...

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        prefix: Prefix | None = None,
    ) -> Tensor:
        """q [T, H, E], k and v [T, K, E] -> [T, H, E]. `window` counts positions; `softcap` is Gemma's tanh cap.

        `prefix` is seen by every query, at the P positions before those of its text: a window can leave it behind."""
        ...


def visible(visible_until: Tensor, positions: Tensor, window: int | None = None) -> Tensor:
    """The rule itself: [T, T] bool, row q, column k."""
    index = torch.arange(len(visible_until), device=visible_until.device)
    q, k = index[:, None], index[None, :]
    seen = (k <= q) & (q < visible_until[None, :])
    if window is not None:
        seen &= positions[:, None] - positions[None, :] < window
    return seen


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible_until: Tensor,
    positions: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The definition, in plain PyTorch: q [T, H, E], k and v [T, K, E] -> [T, H, E]."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = torch.einsum("qhe,khe->hqk", q, k) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible(visible_until, positions, window), float("-inf"))
    return torch.einsum("hqk,khe->qhe", scores.softmax(-1), v)


class PackedView:
    """A packed row. `visible_until` [T] int32 and `positions` [T] int64 on the host; tensors follow q's device."""

    def __init__(self, visible_until: Tensor, positions: Tensor):
        self.visible_until, self.positions = visible_until, positions
        self._buckets: dict[tuple[int | None, torch.device], bucketed.Plan] = {}
        self._plans: dict[tuple[int | None, int], compiled.Plan] = {}
        self._masks: dict[tuple[int | None, torch.device], Any] = {}
        self._behind: dict[int, PackedView] = {}

    def behind(self, size: int) -> PackedView:
        """The row with `size` more tokens before it, which stand at positions 0 to size - 1 and are seen by all."""
        if size not in self._behind:
            ahead = torch.arange(size, dtype=self.positions.dtype, device=self.positions.device)
            until = F.pad(self.visible_until + size, (size, 0), value=size + len(self.visible_until))
            self._behind[size] = PackedView(until, torch.cat([ahead, self.positions + size]))
        return self._behind[size]

    def wanted(self) -> Tensor | None:
        """See `View.wanted`."""
        return None

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        prefix: Prefix | None = None,
    ) -> Tensor:
        """See `View.attend`. A prefix is more tokens of the row, whose own queries nobody asks for."""
        if prefix is not None:
            size = len(prefix[0])
            q, k, v = F.pad(q, (0, 0, 0, 0, size, 0)), torch.cat([prefix[0], k]), torch.cat([prefix[1], v])
            row = self.behind(size)
            return row.attend(layer, q, k, v, scale=scale, window=window, softcap=softcap)[size:]
        if q.is_cuda:
            return self.flex(q, k, v, scale=scale, window=window, softcap=softcap)
        if window is not None and int(self.positions.max()) < window:
            window = None  # the window hides nothing in this row
        if compiled.takes(q, k, v, scale):
            plan = self._plan(window, k.shape[1])
            return TiledAttention.apply(*map(compiled.unit, (q, k, v)), plan, scale, softcap)
        key = (window, q.device)
        if key not in self._buckets:
            self._buckets[key] = bucketed.plan_buckets(self.visible_until, self.positions, window, q.device)
        return bucketed.BucketedAttention.apply(q, k, v, self._buckets[key], scale, softcap)

    def _plan(self, window: int | None, kv_heads: int) -> compiled.Plan:
        if (window, kv_heads) not in self._plans:
            until, positions = self.visible_until.cpu().numpy(), self.positions.cpu().numpy()
            self._plans[window, kv_heads] = compiled.make_plan(until, positions, window, kv_heads)
        return self._plans[window, kv_heads]

    def lengths(self) -> Tensor:
        """See `View.lengths`: a text and those that share its prefix lie between two tokens of position 0."""
        roots = torch.cumsum(self.positions == 0, 0) - 1
        ends = torch.zeros(int(roots[-1]) + 1, dtype=self.positions.dtype)
        return ends.scatter_reduce_(0, roots, self.positions + 1, "amax")[roots]

    def flex(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        kernel: Any = None,
    ) -> Tensor:
        """The same through torch's FlexAttention, compiled on CUDA (`kernel` overrides the function, for tests)."""

        def cap(score: Tensor, *_index: Tensor) -> Tensor:
            return softcap * torch.tanh(score / softcap)  # type: ignore[operator]

        function = kernel or _compiled_flex()
        out = function(
            q.transpose(0, 1)[None],
            k.transpose(0, 1)[None],
            v.transpose(0, 1)[None],
            score_mod=cap if softcap is not None else None,
            block_mask=self._block_mask(window, q.device),
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return out[0].transpose(0, 1)

    def _block_mask(self, window: int | None, device: torch.device) -> Any:
        from torch.nn.attention.flex_attention import create_block_mask

        masks = self._masks
        if (window, device) not in masks:
            until, positions = self.visible_until.to(device), self.positions.to(device)

            def rule(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                seen = (key <= query) & (query < until[key])
                return seen if window is None else seen & (positions[query] - positions[key] < window)

            size = len(until)
            masks[window, device] = create_block_mask(rule, None, None, size, size, device=device)
        return masks[window, device]


_flex: list[Any] = []


def _compiled_flex() -> Any:
    """flex_attention compiled once per process, with dynamic shapes: every row has another length."""
    if not _flex:
        from torch.nn.attention.flex_attention import flex_attention

        _flex.append(torch.compile(flex_attention, dynamic=True))
    return _flex[0]


class TiledAttention(torch.autograd.Function):
    """Attention by the compiled kernel. Saves q, k, v, the output and a number per query and head."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: compiled.Plan, scale: float, softcap: float | None
    ) -> Tensor:
        out, sums = compiled.forward(q, k, v, plan, scale, softcap)
        ctx.save_for_backward(q, k, v, out, sums)
        ctx.plan, ctx.scale, ctx.softcap = plan, scale, softcap
        count("attention", plan.flops(q.shape[1], q.shape[2])[0])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The three gradients are slices of one buffer [T, H + 2 K, E]."""
        q, k, v, out, sums = ctx.saved_tensors
        count("attention", ctx.plan.flops(q.shape[1], q.shape[2])[1])
        slopes = compiled.backward(q, k, v, out, sums, grads[0], ctx.plan, ctx.scale, ctx.softcap)
        return *slopes, None, None, None
