"""What prefix and prompt share: P virtual tokens before every text, what they begin as, and how PEFT writes them down.

They take the positions 0 to P - 1 and every text begins at P. Both are saved as one table of P rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from lorikeet.adapters._contract import Adapter, halves
from lorikeet.base.errors import RecipeError
from lorikeet.base.rng import numpy_rng
from lorikeet.models.causal_lm import CausalLM
from lorikeet.tokens._contract import Tokenizer

TABLE = "prompt_embeddings"  # the one tensor in PEFT's adapter_model.safetensors


class VirtualTokens(Adapter):
    """Base of the two kinds."""

    num_virtual_tokens: int = Field(32, ge=1, description="P, how many virtual tokens stand before every text.")
    init: Literal["vocabulary", "text", "random"] | None = Field(
        None,
        description="What they begin as: tokens of the vocabulary, tokens of init_text, or random numbers. By default "
        "text where init_text is given, else vocabulary.",
    )
    init_text: str | None = Field(
        None, min_length=1, description="What the virtual tokens say at first; cut, or repeated, to their number."
    )
    init_tokens: list[int] | None = Field(
        None, min_length=1, description="Ids of init_text; by default the model's tokenizer says them."
    )
    merge_refusal: ClassVar[str | None] = "virtual tokens are no weights of the network, so there is nothing to fold in"

    only_at_start: ClassVar[tuple[str, ...]] = ("init", "init_text", "init_tokens")

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        given = self.init_text is not None or self.init_tokens is not None
        if given and self.init in ("vocabulary", "random"):
            raise ValueError(f"init_text and init_tokens have no effect with init={self.init}")
        if self.init == "text" and not given:
            raise ValueError("init=text needs init_text")
        return self

    @property
    def start(self) -> Literal["vocabulary", "text", "random"]:
        """`init`, decided."""
        if self.init is not None:
            return self.init
        return "vocabulary" if self.init_text is None and self.init_tokens is None else "text"

    @property
    def context_taken(self) -> int:
        """See `Adapter.context_taken`."""
        return self.num_virtual_tokens

    def function(self, model: CausalLM) -> dict[str, Any]:
        """See `Adapter.function`."""
        return {"num_virtual_tokens": self.num_virtual_tokens}

    def with_tokenizer(self, tokenizer: Tokenizer) -> Self:
        """See `Adapter.with_tokenizer`: the ids of init_text, behind the token that begins the model's texts."""
        if self.init_text is None or self.init_tokens is not None:
            return self
        ids, _ = tokenizer.encode(self.init_text)
        begin = tokenizer.control.get(tokenizer.bos_token) if tokenizer.bos_token else None
        return self.model_copy(update={"init_tokens": ids if begin is None else [begin, *ids]})

    def smaller(self) -> list[dict[str, Any]]:
        """See `Adapter.smaller`."""
        return [{"num_virtual_tokens": size} for size in halves(self.num_virtual_tokens)]

    def first_tokens(self, model: CausalLM, seed: int) -> Tensor:
        """[P] ids that the virtual tokens begin as. Raises RecipeError for ids that the model does not have."""
        size, vocabulary = self.num_virtual_tokens, model.shape.vocab_size
        if self.start == "vocabulary":
            return torch.from_numpy(numpy_rng(seed, "virtual tokens").integers(0, vocabulary, size))
        if self.init_tokens is None:
            raise RecipeError(
                "adapter.init_text: its ids are not known without the model's tokenizer",
                given=self.init_text,
                try_="adapter.init_tokens, the ids themselves",
            )
        wrong = [token for token in self.init_tokens if not 0 <= token < vocabulary]
        if wrong:
            raise RecipeError(
                "adapter.init_tokens: the model has no such token", given=wrong[0], allowed=f"0 to {vocabulary - 1}"
            )
        return torch.tensor((self.init_tokens * (size // len(self.init_tokens) + 1))[:size])

    def check_context(self, model: CausalLM) -> None:
        """Raise RecipeError where the virtual tokens leave nothing of the model's context. Asked before there is
        anything of their size."""
        if self.num_virtual_tokens >= model.shape.max_position:
            raise RecipeError(
                "adapter.num_virtual_tokens: they fill the model's context",
                given=self.num_virtual_tokens,
                allowed=f"less than {model.shape.max_position}",
                try_="adapter.num_virtual_tokens=32",
            )

    def take_context(self, model: CausalLM) -> None:
        """What the virtual tokens leave of the model's context, once `check_context` said that it is something."""
        size, shape = self.num_virtual_tokens, model.shape
        model.shape = replace(shape, max_position=shape.max_position - size)
        if model.shares_within is not None:
            model.shares_within = max(0, model.shares_within - size)

    def settings(self, peft_type: str, **sizes: int) -> dict[str, Any]:
        """adapter_config.json: what PEFT has for both."""
        return {
            "peft_type": peft_type,
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "num_virtual_tokens": self.num_virtual_tokens,
            "num_transformer_submodules": 1,
            **sizes,
        }

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> Self:
        """See `Adapter.from_peft`. What the virtual tokens began as does not matter any more."""
        if config.get("num_transformer_submodules") not in (None, 1):
            raise RecipeError(
                "this adapter is one for an encoder and a decoder",
                given=f"num_transformer_submodules={config['num_transformer_submodules']}",
                allowed="1",
            )
        return cls(num_virtual_tokens=config["num_virtual_tokens"], init="random")


def master(dtype: torch.dtype) -> torch.dtype:
    """Trainable tensors are float32, or wider where the model is."""
    return torch.promote_types(dtype, torch.float32)
