"""The native decoder: pre-norm attention and feed-forward over one packed row of tokens.

    x = x + O(attend(rotate(QKV(norm(x)))))        x = x + feed_forward(norm(x))

with what families add where their spec says so: norms on q and k (Qwen 3), norms behind attention and feed-forward,
windows with a rope of their own, a scaled embedding, caps on scores and logits (Gemma). Everything works on [T, ...];
who sees whom is the view's business.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lorikeet.models.build import Build, Embedding, Norm
from lorikeet.models.causal_lm import CausalLM, Head
from lorikeet.models.slots import Slot, slots
from lorikeet.models.spec import DecoderSpec
from lorikeet.ops.attention import View
from lorikeet.ops.checkpointing import checkpointed
from lorikeet.ops.heads import HeadNorms, split_heads


class Block(nn.Module):
    """One layer."""

    def __init__(self, index: int, spec: DecoderSpec, build: Build):
        super().__init__()
        self.index, self.spec, self.window = index, spec, spec.window(index)
        shape, names = spec.shape, spec.names
        q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim

        def inside(name: str) -> str:
            return f"{names.layers}.{index}.{name}"

        def norm(name: str | None, width: int = shape.width) -> Norm | None:
            return None if name is None else build.norm(inside(name), width, spec.norm_eps, spec.norm_offset)

        self.before_attention = build.norm(inside(names.before_attention), shape.width, spec.norm_eps, spec.norm_offset)
        sizes = (q, kv, kv) if len(names.qkv) == 3 else (q + 2 * kv,)
        self.qkv = build.linears([inside(name) for name in names.qkv], sizes, shape.width, bias=spec.attention_bias)
        self.q_norm, self.k_norm = norm(names.q_norm, shape.head_dim), norm(names.k_norm, shape.head_dim)
        self.o = build.linears([inside(names.output)], [shape.width], q, bias=spec.output_bias)
        self.after_attention = norm(names.after_attention)
        self.before_mlp = build.norm(inside(names.before_mlp), shape.width, spec.norm_eps, spec.norm_offset)
        self.feed_forward = spec.feed_forward(index, build)
        self.after_mlp = norm(names.after_mlp)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, view: View, wanted: Tensor | None = None) -> Tensor:
        """x [T, D], cos and sin [T, 1, E] -> [T, D], or [N, D] of the tokens that are wanted [N]."""
        mixed = self._attention(x, cos, sin, view)
        if wanted is not None:
            x, mixed = x[wanted], mixed[wanted]
        mixed = self.o(mixed)
        x = _sum(x, mixed if self.after_attention is None else self.after_attention(mixed))
        found = self.feed_forward(x, self.before_mlp)
        return _sum(x, found if self.after_mlp is None else self.after_mlp(found))

    def _attention(self, x: Tensor, cos: Tensor, sin: Tensor, view: View) -> Tensor:
        shape, spec = self.spec.shape, self.spec
        qkv = self.before_attention.before(self.qkv, x).view(len(x), -1, shape.head_dim)  # [T, H + 2K, E]
        qkv, norms = self._head_norms(qkv)
        q, k, v = split_heads(qkv, cos, sin, shape.heads, shape.kv_heads, norms)
        scale = shape.head_dim**-0.5 if spec.scale is None else spec.scale
        mixed = view.attend(self.index, q, k, v, scale=scale, window=self.window, softcap=spec.softcap)
        return mixed.reshape(len(x), -1)

    def _head_norms(self, qkv: Tensor) -> tuple[Tensor, HeadNorms | None]:
        """The norms of q's and k's heads, for `split_heads`; where they train, they are applied here."""
        q, k, heads = self.q_norm, self.k_norm, self.spec.shape.heads
        if q is None or k is None:
            return qkv, None
        if q.weight.requires_grad or k.weight.requires_grad:
            turned = heads + self.spec.shape.kv_heads
            return torch.cat([q(qkv[:, :heads]), k(qkv[:, heads:turned]), qkv[:, turned:]], dim=1), None
        return qkv, HeadNorms(q.weight, k.weight, q.eps, q.offset)


def _sum(x: Tensor, fresh: Tensor) -> Tensor:
    """x + fresh, where `fresh` is nobody else's: without gradients its own memory takes the sum."""
    return x + fresh if torch.is_grad_enabled() or x.dtype != fresh.dtype else fresh.add_(x)


class Decoder(CausalLM):
    """A family's network, built empty; `models.load` fills it."""

    def __init__(self, spec: DecoderSpec, build: Build):
        super().__init__()
        self.spec, self.shape, names = spec, spec.shape, spec.names
        self.embedding = build.embedding(names.embedding, spec.shape.vocab_size, spec.shape.width)
        self.embedding.scale = spec.embedding_scale
        self.blocks = nn.ModuleList(Block(i, spec, build) for i in range(spec.shape.layers))
        self.norm = build.norm(names.norm, spec.shape.width, spec.norm_eps, spec.norm_offset)
        # not a second part where tied: its tensor is then the embedding's
        self.untied = None if spec.tied else build.embedding(names.head, spec.shape.vocab_size, spec.shape.width)
        self.head = Head((self.untied or self.embedding).weight, softcap=spec.final_softcap)
        self.shares_within = spec.rope.unchanged_within()

    def hidden(self, tokens: Tensor, positions: Tensor, view: View) -> Tensor:
        """See `CausalLM.hidden`."""
        x = self.embedding(tokens)
        by_length = self.shares_within is not None
        far = near = self.spec.rope.table(positions, self.dtype, view.lengths().to(x.device) if by_length else None)
        if self.spec.local_rope is not None:
            near = self.spec.local_rope.table(positions, self.dtype)
        twice, wanted = self.computed_twice(len(self.blocks)), view.wanted()
        for i, block in enumerate(self.blocks):
            cos, sin = far if block.window is None else near
            if i < twice:
                x = checkpointed(block, x, cos, sin, view)
            else:
                x = block(x, cos, sin, view, wanted if i + 1 == len(self.blocks) else None)
        x = self.norm(x)
        if wanted is None or len(x) == len(tokens):
            return x
        return x.new_zeros(len(tokens), x.shape[1]).index_copy_(0, wanted, x)

    def embedder(self) -> nn.Module:
        """See `CausalLM.embedder`."""
        return self.embedding

    def untie(self) -> bool:
        """See `CausalLM.untie`."""
        assert self.untied is None
        weight = nn.Parameter(self.head.weight.detach().clone(), requires_grad=False)
        self.untied = Embedding(self.spec.names.head, weight)
        self.head.weight = weight
        return True

    def slots(self) -> Iterator[Slot]:
        """See `CausalLM.slots`."""
        return slots(self)
