"""Qwen 1 (Bai et al. 2023), the checkpoints with remote code, on Qwen 2's network.

q, k and v are one biased tensor `c_attn`. The feed-forward is c_proj(w1 x * silu(w2 x)): w2 is the gate. The config's
`intermediate_size` counts both halves. Texts beyond `seq_length` got a grown rope base and log-n attention at
inference only; training and answering here stay within `seq_length`, where neither acts.
"""

from __future__ import annotations

from typing import Any, ClassVar

from lorikeet.base.errors import ModelError
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.models.causal_lm import Shape
from lorikeet.models.families import _config, _gguf
from lorikeet.models.families._contract import DecoderSpec, Family, Names
from lorikeet.models.gguf_layouts._contract import not_the_same
from lorikeet.ops.rope import Rope


class Qwen(Family):
    """Qwen-1.8B, 7B, 14B and 72B with their Chat and Int4 siblings' names."""

    kind: ClassVar[str] = "qwen"
    model_type: ClassVar[str] = "qwen"
    architecture: ClassVar[str] = "QWenLMHeadModel"
    gguf_architecture: ClassVar[str | None] = "qwen"
    gguf_inside: ClassVar[str] = "transformer."
    gguf_layer: ClassVar[dict[str, str]] = {
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "mlp.w2": "ffn_gate",
        "mlp.w1": "ffn_up",
        "mlp.c_proj": "ffn_down",
        "ln_1": "attn_norm",
        "ln_2": "ffn_norm",
    }
    gguf_top: ClassVar[dict[str, str]] = {
        "wte": "token_embd",
        "ln_f": "output_norm",
        "lm_head": "output",
    }

    def spec(self, config: dict[str, Any]) -> DecoderSpec:
        heads, width = _config.whole(config, "num_attention_heads"), _config.whole(config, "hidden_size")
        head_dim = _config.whole(config, "kv_channels", width // heads)
        if not config.get("no_bias", True):
            raise ModelError("config.json: a Qwen 1 with biases everywhere was never published", given="no_bias false")
        length = _config.whole(config, "seq_length", 2048)
        shape = Shape(
            vocab_size=_config.whole(config, "vocab_size"),
            width=width,
            layers=_config.whole(config, "num_hidden_layers"),
            heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            ffn_width=_config.whole(config, "intermediate_size") // 2,
            max_position=length,
            config=config,
        )
        rotated = int(head_dim * (_config.number(config, "rotary_pct") or 1.0))
        return DecoderSpec(
            shape=shape,
            rope=Rope(rotated, _config.number(config, "rotary_emb_base") or 10000.0, length),
            norm_eps=_config.number(config, "layer_norm_epsilon") or 1e-6,
            tied=_config.tied(config, False),
            attention_bias=True,
            names=Names(
                embedding="transformer.wte",
                layers="transformer.h",
                norm="transformer.ln_f",
                qkv=("attn.c_attn",),
                output="attn.c_proj",
                gate_up=("mlp.w2", "mlp.w1"),
                down="mlp.c_proj",
                before_attention="ln_1",
                before_mlp="ln_2",
            ),
        )

    def config_from_gguf(self, checkpoint: Checkpoint) -> dict[str, Any]:
        found = _gguf.read_settings(checkpoint, self.architecture, self.model_type)
        return {
            "architectures": found["architectures"],
            "model_type": found["model_type"],
            "vocab_size": found["vocab_size"],
            "hidden_size": found["hidden_size"],
            "num_hidden_layers": found["num_hidden_layers"],
            "num_attention_heads": found["num_attention_heads"],
            "kv_channels": found["head_dim"],
            "intermediate_size": 2 * checkpoint.shape("blk.0.ffn_up.weight")[0],
            "seq_length": found["max_position_embeddings"],
            "rotary_emb_base": found["rope_theta"],
            "layer_norm_epsilon": found["rms_norm_eps"],
            "no_bias": True,
            "tie_word_embeddings": found["tie_word_embeddings"],
        }

    def gguf_metadata(self, spec: DecoderSpec) -> dict[str, Any]:
        if spec.tied or spec.rope.rotary_dim != spec.shape.head_dim:
            given = "a tied head" if spec.tied else "heads that are rotated in part"
            raise not_the_same("no published Qwen 1 has this", given)
        _gguf.check_plain(spec)
        # as in the config, both halves are counted
        return super().gguf_metadata(spec) | {"qwen.feed_forward_length": 2 * spec.shape.ffn_width}
