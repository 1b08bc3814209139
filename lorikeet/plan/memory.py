"""How much memory and time training will take, computed from a network's sizes before anything is loaded.

What is kept can be counted: weights, adapter, optimizer, activations saved for the backward pass. What an allocator and
the kernels add cannot; two constants below were fitted to measured runs of SmolLM2-135M on a CPU.
There an estimate is good to a fifth (tests/plan/test_memory.py has the figures); elsewhere nothing was measured yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorikeet.models.causal_lm import Shape
from lorikeet.ops.bucketed_attention import BUCKET_SCORES, QUERY_BLOCK
from lorikeet.ops.linear_cross_entropy import CHUNK_BYTES, CHUNK_ROWS

GIB = 1 << 30
PROCESS_BYTES = int(0.36 * GIB)  # Python, torch, and the kernels that oneDNN makes for each length and keeps
TOKENIZER_BYTES = 2300  # of a token of the vocabulary, in the tokenizer
GRADIENT_BYTES = 4  # of a trainable parameter
TRAINED_BYTES = 16  # of a trainable parameter: itself, its gradient, Adam's two averages; float32 each
NF4_BYTES = 0.5 + 1 / 64  # of a weight in nf4 with double_quant: 4 bits, and a scale per 64 in 8 bits
NF4_ROW_BYTES = 8  # of a row of weights: what its scales are scaled by
# shares of the best matmul that whole training steps reached: small layers on a CPU, and what larger ones can hope for
LEAST_USE, MOST_USE = 0.1, 0.4


@dataclass(frozen=True)
class Sizes:
    """A network's sizes; `ffn_width` is one expert's where there are experts. Biases and norms are not counted."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_width: int
    tied: bool
    experts: int = 0
    experts_per_token: int = 0
    shared_width: int = 0  # of the expert that every token meets besides

    @classmethod
    def of(cls, shape: Shape, *, tied: bool) -> Sizes:
        """Those of a network we can load. The experts' numbers stand in its config only."""
        config: dict[str, Any] = shape.config
        experts = int(config.get("num_local_experts") or config.get("num_experts") or 0)
        return cls(
            shape.vocab_size, shape.width, shape.layers, shape.heads, shape.kv_heads, shape.head_dim,
            int(config.get("moe_intermediate_size") or shape.ffn_width) if experts else shape.ffn_width, tied,
            experts, int(config.get("num_experts_per_tok") or 1) if experts else 0,
            int(config.get("shared_expert_intermediate_size") or 0) if experts else 0,
        )  # fmt: skip

    @property
    def attention(self) -> int:
        """Weights of one layer's q, k, v and o."""
        return self.width * self.head_dim * (2 * self.heads + 2 * self.kv_heads)

    @property
    def linears(self) -> int:
        """Weights of all linears but the head, every expert counted."""
        router, ffn = self.experts * self.width, max(1, self.experts) * self.ffn_width + self.shared_width
        return self.layers * (self.attention + 3 * self.width * ffn + router)

    @property
    def active(self) -> int:
        """Weights of the linears that one token meets."""
        return self.layers * (self.attention + 3 * self.width * self.active_ffn)

    @property
    def active_ffn(self) -> int:
        """The width of all feed-forwards that one token meets in a layer."""
        return max(1, self.experts_per_token) * self.ffn_width + self.shared_width

    @property
    def embeddings(self) -> int:
        """Weights of the embedding, and of the head where it is not the same."""
        return self.vocab_size * self.width * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.linears + self.embeddings

    def lora(self, r: int) -> int:
        """Trainable parameters of LoRA on all linears; on attention alone where there are experts."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        found = 2 * self.width + 2 * q + 2 * (self.width + kv)  # q and o, k and v: in + out each
        if not self.experts:
            found += 3 * (self.width + self.ffn_width)
        return self.layers * r * found


@dataclass(frozen=True)
class Trained:
    """What training adds to a network, in numbers; plan/trained.py finds it for an adapter of any kind."""

    numbers: int  # that train
    instead: int = 0  # of the base's weights, those that they take the place of
    per_token: int = 0  # that are kept of each token for the backward pass

    @classmethod
    def lora(cls, sizes: Sizes, r: int) -> Trained:
        """LoRA on all linears, where only sizes are known; on attention alone where there are experts."""
        return cls(sizes.lora(r), 0, sizes.layers * 4 * (r + -r % 32))


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak, by what holds them."""

    process: int
    weights: int
    loading: int  # the largest tensor once more, as it is read; gone before training begins
    adapter: int  # with gradients and optimizer state
    activations: int  # kept for the backward pass
    temporaries: int  # one layer's, the chunk of logits, attention's scores

    @property
    def total(self) -> int:
        return self.process + self.weights + max(self.loading, self.adapter + self.activations + self.temporaries)


def peak_memory(
    sizes: Sizes,
    trained: Trained,
    *,
    bytes_per_value: int,
    row_tokens: int,
    checkpointing: bool,
    nf4: bool = False,
    in_backward: bool = False,
) -> Memory:
    """The peak while `trained` trains on rows of `row_tokens`; `bytes_per_value`: 2 for bfloat16.

    `nf4`: the linears are kept in 4 bits with double_quant (QLoRA), embedding and head as they are. `in_backward`: the
    optimizer moves tensors within the backward pass, so gradients take no room (but a layer's)."""
    s, qkv = sizes, (2 * sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim
    ffn = s.active_ffn
    # one token in one layer: the residual stream twice, q, k and v as rotated, the output, gate and up, the adapter's
    kept = bytes_per_value * (2 * s.width + qkv + 2 * ffn + trained.per_token // s.layers)
    whole_layers = 1 if checkpointing else s.layers
    between = bytes_per_value * s.width * s.layers if checkpointing else 0
    one_layer = bytes_per_value * (4 * ffn + 4 * s.width) + 12 * s.width  # gradients; the norm works in float32
    # scores of attention without a compiled kernel; with one there are none
    rows = -(-row_tokens // QUERY_BLOCK)
    scores = min(BUCKET_SCORES, rows * QUERY_BLOCK * min(row_tokens, 512)) * s.heads * bytes_per_value
    chunk = max(CHUNK_BYTES, CHUNK_ROWS * bytes_per_value * s.vocab_size)
    linear = NF4_BYTES + NF4_ROW_BYTES / s.width if nf4 else bytes_per_value
    weights = s.embeddings * bytes_per_value + int(s.linears * linear)
    gradient = max(s.width * 2 * s.ffn_width, s.vocab_size * s.width) if trained.instead else 0  # the largest
    each = TRAINED_BYTES - (GRADIENT_BYTES if in_backward else 0)
    dense = max(s.width * 2 * s.ffn_width, s.attention // 2) * bytes_per_value if nf4 else 0  # one group made dense
    return Memory(
        process=PROCESS_BYTES + TOKENIZER_BYTES * s.vocab_size,
        weights=max(0, weights - trained.instead * bytes_per_value),
        loading=bytes_per_value * s.vocab_size * s.width,
        adapter=trained.numbers * each + (GRADIENT_BYTES * gradient if in_backward else 0),
        activations=row_tokens * (kept * whole_layers + between),
        temporaries=int(row_tokens * one_layer + 2.5 * chunk + 2 * scores + dense),
    )


def training_flops(sizes: Sizes, trained: Trained, *, tokens: int, trained_tokens: int, checkpointing: bool) -> float:
    """Floating point operations of a forward and a backward pass over `tokens`.

    A frozen weight costs 2 a token forward and 2 for its input's gradient; a recomputed layer 2 more; a trained
    weight 6, or 2 more where it is the base's own. The head counts at trained tokens."""
    frozen = (6 if checkpointing else 4) * sizes.active
    head = 4.0 * sizes.vocab_size * sizes.width * trained_tokens
    own = 2 * min(max(0, trained.instead), sizes.active)
    return float(tokens) * (frozen + own + 6 * max(0, trained.numbers - trained.instead)) + head


def training_seconds(flops: float, matmul_flops: float) -> tuple[float, float]:
    """(shortest, longest) likely time, given the machine's best matmul in operations per second."""
    return flops / (matmul_flops * MOST_USE), flops / (matmul_flops * LEAST_USE)
