"""Prompt tuning (Lester et al. 2021): P learned vectors enter the network before the tokens of every text.

In a packed row they stand once, as a prefix that all its conversations share: their gradients are then the sums over
all. Where nothing trains (prefill, decoding) their keys and values are computed once and kept: a prefix like
prefix.py's. The vectors are in the scale in which tokens enter the first layer (Gemma multiplies its rows), as PEFT's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorikeet.adapters._virtual_tokens import TABLE, VirtualTokens, master
from lorikeet.base.errors import ModelError
from lorikeet.base.rng import torch_rng
from lorikeet.kernels import has_numbers
from lorikeet.models.causal_lm import CausalLM
from lorikeet.ops.attention import PackedView, Prefix, View
from lorikeet.ops.prefix import PrefixedView, RecordedView


class PromptTuning(VirtualTokens):
    """Learned vectors before every text."""

    kind: Literal["prompt"] = "prompt"
    peft_type: ClassVar[str] = "PROMPT_TUNING"
    usual_rate: ClassVar[float] = 3e-2
    merge_refusal: ClassVar[str | None] = (
        "vectors that stand before the tokens are no weights, so they cannot be folded in; serve it as an adapter"
    )
    noise_refusal: ClassVar[str | None] = (
        "a prompt's vectors stand once before all conversations of a row, and noise is drawn for each of them apart"
    )

    def attach(self, model: CausalLM, *, seed: int) -> None:
        """See `Adapter.attach`."""
        self.check_context(model)
        embedder = model.embedder()
        table = torch.empty(self.num_virtual_tokens, model.shape.width, dtype=master(model.dtype))
        if self.start == "random":
            table.normal_(generator=torch_rng(seed, "prompt"))  # as torch.nn.Embedding begins in PEFT
        else:
            ids = self.first_tokens(model, seed)
            if has_numbers(model.head.weight):
                with torch.no_grad():
                    table.copy_(embedder(ids.to(model.device)))
        self.take_context(model)
        model.prompt = prompt = SoftPrompt(table.to(model.device), embedder, model.shares_within)
        if has_numbers(table):
            prompt.read(model.hidden)  # a network that cannot answer with a prompt is told now
        model.surround(prompt.around)

    def parameters(self, model: CausalLM) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`."""
        prompt = model.prompt
        assert isinstance(prompt, SoftPrompt), "attach first"
        return {TABLE: prompt.vectors}

    def peft_config(self, model: CausalLM) -> dict[str, Any]:
        """See `Adapter.peft_config`."""
        shape = model.shape
        return {
            **self.settings(self.peft_type),
            "num_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "token_dim": shape.width,
            "prompt_tuning_init": "RANDOM",
        }


class SoftPrompt(nn.Module):
    """P vectors [P, D], float32, and the ways to read them. `longest`: see `CausalLM.shares_within`."""

    def __init__(self, vectors: Tensor, embedder: nn.Module, longest: int | None):
        super().__init__()
        self.vectors, self.longest = nn.Parameter(vectors), longest
        self._embedder = [embedder]  # in a list: the network owns it, not we
        self._kept: tuple[Tensor, list[Prefix]] | None = None

    def around(self, hidden: Callable[..., Tensor], tokens: Tensor, positions: Tensor, view: View) -> Tensor:
        """See `CausalLM.surround`."""
        size = len(self.vectors)
        self._check(view)
        if isinstance(view, PackedView):
            row = view.behind(size)
            return self._enter(hidden, F.pad(tokens, (size, 0)), row.positions.to(positions.device), row)[size:]
        return hidden(tokens, positions + size, PrefixedView(view, self.read(hidden)))

    def _check(self, view: View) -> None:
        """A rope that changes with a text's length gives the vectors other keys for long texts."""
        if self.longest is not None and int(view.lengths().max()) > self.longest:
            raise ModelError(
                "the keys of a prompt that texts share would change with their length in this network",
                given=f"a text of {int(view.lengths().max())} tokens",
                allowed=f"at most {self.longest} behind the prompt",
                try_="a lower data.max_length, or adapter.kind=prefix",
            )

    def _enter(self, hidden: Callable[..., Tensor], tokens: Tensor, positions: Tensor, view: View) -> Tensor:
        """A pass in which the vectors stand for the first P tokens."""

        def enter(_module: nn.Module, _inputs: Any, found: Tensor) -> Tensor:
            vectors = self.vectors.to(found.dtype).expand(*found.shape[:-2], -1, -1)  # of each text of a batch
            return torch.cat([vectors, found[..., len(self.vectors) :, :]], dim=-2)

        handle = self._embedder[0].register_forward_hook(enter)
        try:
            return hidden(tokens, positions, view)
        finally:
            handle.remove()

    @torch.no_grad()
    def read(self, hidden: Callable[..., Tensor]) -> list[Prefix]:
        """What each layer makes of the vectors; kept until they change."""
        size, device = len(self.vectors), self.vectors.device
        # by their numbers: a compiled optimizer changes them without torch's knowledge
        if self._kept is None or not torch.equal(self._kept[0], self.vectors):
            recorded = RecordedView(PackedView(torch.full((size,), size, dtype=torch.int32), torch.arange(size)))
            places = torch.arange(size, device=device)
            self._enter(hidden, torch.zeros_like(places), places, recorded)
            pairs = (recorded.kept[layer] for layer in sorted(recorded.kept))
            self._kept = self.vectors.clone(), [(k.clone(), v.clone()) for k, v in pairs]
        return self._kept[1]
