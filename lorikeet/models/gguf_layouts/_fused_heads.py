"""What Bloom's and GPT-NeoX's checkpoints have in common: q, k and v of one head together, then those of the next."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from lorikeet.models.gguf_layouts._contract import GGUFLayout
from lorikeet.models.spec import Spec


class FusedHeads(GGUFLayout):
    """Base of both. A GGUF file has q of all heads, then k, then v. Layers differ in what attention is called."""

    gguf_attention: ClassVar[str]  # the module that holds query_key_value and dense

    def gguf_tables(self) -> tuple[dict[str, str], dict[str, str]]:
        """See `GGUFLayout.gguf_tables`."""
        return self.gguf_top, {
            "input_layernorm": "attn_norm",
            f"{self.gguf_attention}.query_key_value": "attn_qkv",
            f"{self.gguf_attention}.dense": "attn_output",
            "post_attention_layernorm": "ffn_norm",
            "mlp.dense_h_to_4h": "ffn_up",
            "mlp.dense_4h_to_h": "ffn_down",
        }

    def to_gguf(self, name: str, tensor: Tensor, spec: Spec) -> Tensor:
        """Rows as (head, one of q, k, v) to rows as (one of q, k, v, head)."""
        if ".query_key_value." not in name:
            return tensor
        apart = tensor.reshape(spec.shape.heads, 3, -1, *tensor.shape[1:]).transpose(0, 1)
        return apart.reshape(tensor.shape)
