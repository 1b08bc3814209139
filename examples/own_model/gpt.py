"""A GPT of one's own, in plain PyTorch: learned positions, LayerNorm, GELU. Lorikeet trains it like any other model.

Attention is the one thing to ask for: `view.attend` knows who may see whom in a packed row, and in a cache.
"""

import torch
import torch.nn.functional as F
from torch import nn

from lorikeet.models.causal_lm import Shape
from lorikeet.models.module import ModuleFamily


class Block(nn.Module):
    def __init__(self, index, width, heads):
        super().__init__()
        self.index, self.heads, self.head_dim = index, heads, width // heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, view):
        q, k, v = self.qkv(self.norm1(x)).view(len(x), 3, self.heads, self.head_dim).unbind(1)
        mixed = view.attend(self.index, q, k, v, scale=self.head_dim**-0.5)  # [T, H, E]
        x = x + self.out(mixed.reshape(len(x), -1))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Gpt(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, self.gradient_checkpointing = config["width"], False
        self.embedding = nn.Embedding(config["vocab_size"], width)
        self.position = nn.Embedding(config["context"], width)
        self.blocks = nn.ModuleList(Block(i, width, config["heads"]) for i in range(config["layers"]))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens, positions, view):
        """tokens and positions [T] -> hidden states [T, D]."""
        x = self.embedding(tokens) + self.position(positions)
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = torch.utils.checkpoint.checkpoint(block, x.requires_grad_(), view, use_reentrant=False)
            else:
                x = block(x, view)
        return self.norm(x)


class GptFamily(ModuleFamily):
    model_type, head = "my-gpt", "embedding"  # config.json's model_type; the head is the embedding

    def shape(self, c):
        e = c["width"] // c["heads"]
        return Shape(
            c["vocab_size"], c["width"], c["layers"], c["heads"], c["heads"], e, 4 * c["width"], c["context"], c
        )

    def module(self, config):
        return Gpt(config)
