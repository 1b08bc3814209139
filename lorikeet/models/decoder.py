"""The native decoder: pre-norm attention and gated MLP over one packed row of tokens.

    x = x + O(attend(rotate(QKV(norm(x)))))        x = x + down(swiglu(gate_up(norm(x))))

Everything works on [T, ...]; who sees whom is the view's business.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorikeet.models.causal_lm import CausalLM, Head
from lorikeet.models.families._contract import DecoderSpec
from lorikeet.models.linear import LinearGroup
from lorikeet.ops.attention import View
from lorikeet.ops.checkpointing import checkpointed
from lorikeet.ops.norm import RmsNorm
from lorikeet.ops.rope import rotate
from lorikeet.ops.swiglu import swiglu
from lorikeet.quant._contract import Quant


class Block(nn.Module):
    """One layer. Names of its parts follow the checkpoint's."""

    def __init__(self, index: int, spec: DecoderSpec, quant: Quant, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.index, self.spec = index, spec
        shape = spec.shape
        q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim

        def group(owner: str, names: tuple[str, ...], sizes: tuple[int, ...], width: int, bias: bool) -> LinearGroup:
            storage = quant.empty(sum(sizes), width, dtype, device)
            biases = [torch.empty(size, dtype=dtype, device=device) if bias else None for size in sizes]
            full = [f"model.layers.{index}.{owner}.{name}" for name in names]
            return LinearGroup(full, sizes, storage, biases)

        self.input_layernorm = RmsNorm(shape.width, spec.norm_eps, dtype, device)
        self.qkv = group("self_attn", ("q_proj", "k_proj", "v_proj"), (q, kv, kv), shape.width, spec.attention_bias)
        self.o = group("self_attn", ("o_proj",), (shape.width,), q, spec.output_bias)
        self.post_attention_layernorm = RmsNorm(shape.width, spec.norm_eps, dtype, device)
        self.gate_up = group("mlp", ("gate_proj", "up_proj"), (shape.ffn_width,) * 2, shape.width, spec.mlp_bias)
        self.down = group("mlp", ("down_proj",), (shape.width,), shape.ffn_width, spec.mlp_bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, view: View) -> Tensor:
        """x [T, D], cos and sin [T, 1, E] -> [T, D]."""
        shape = self.spec.shape
        rotated, heads = shape.heads + shape.kv_heads, shape.heads
        qkv = self.qkv(self.input_layernorm(x)).view(len(x), -1, shape.head_dim)  # [T, H + 2K, E]
        qk = rotate(qkv[:, :rotated], cos, sin)
        mixed = view.attend(
            self.index,
            qk[:, :heads],
            qk[:, heads:],
            qkv[:, rotated:],
            scale=shape.head_dim**-0.5,
            window=self.spec.window,
        )
        x = x + self.o(mixed.reshape(len(x), -1))
        return x + self.down(swiglu(self.gate_up(self.post_attention_layernorm(x))))


class Decoder(CausalLM):
    """A family's network, built empty; `models.load` fills it."""

    def __init__(self, spec: DecoderSpec, quant: Quant, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.spec, self.shape = spec, spec.shape
        sizes = (spec.shape.vocab_size, spec.shape.width)
        self.embed = nn.Parameter(torch.empty(sizes, dtype=dtype, device=device), requires_grad=False)
        self.blocks = nn.ModuleList(Block(i, spec, quant, dtype, device) for i in range(spec.shape.layers))
        self.norm = RmsNorm(spec.shape.width, spec.norm_eps, dtype, device)
        untied = None if spec.tied else nn.Parameter(torch.empty(sizes, dtype=dtype, device=device), False)
        self.head = Head(self.embed if untied is None else untied)

    def hidden(self, tokens: Tensor, positions: Tensor, view: View) -> Tensor:
        """See `CausalLM.hidden`."""
        cos, sin = self.spec.rope.table(positions, self.dtype)
        x = F.embedding(tokens, self.embed)
        if self.gradient_checkpointing and torch.is_grad_enabled():
            x.requires_grad_()  # so that each block, the first too, is recomputed inside the graph
            for block in self.blocks:
                x = checkpointed(block, x, cos, sin, view)
        else:
            for block in self.blocks:
                x = block(x, cos, sin, view)
        return self.norm(x)

    def slots(self) -> Iterator[tuple[str, Tensor | None, LinearGroup | None, int]]:
        """Where each checkpoint tensor goes: (name, tensor or None, group or None, member of the group)."""
        yield "model.embed_tokens.weight", self.embed, None, 0
        for block in self.blocks:
            assert isinstance(block, Block)
            prefix = f"model.layers.{block.index}"
            for norm in ("input_layernorm", "post_attention_layernorm"):
                yield f"{prefix}.{norm}.weight", getattr(block, norm).weight, None, 0
            for group in (block.qkv, block.o, block.gate_up, block.down):
                for i, linear in enumerate(group.linears):
                    yield f"{linear.name}.weight", None, group, i
                    if linear.bias is not None:
                        yield f"{linear.name}.bias", linear.bias, None, 0
        yield "model.norm.weight", self.norm.weight, None, 0
        if self.head.weight is not self.embed:
            yield "lm_head.weight", self.head.weight, None, 0

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """See `CausalLM.tensors`: the frozen weights, without adapters."""
        for name, tensor, group, member in self.slots():
            yield name, group.linears[member].dense(self.dtype) if group is not None else _present(tensor)


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
