"""What every adapter does: put something trainable into a frozen network, name it, and fold it back.

An adapter meets the frozen weights only through `FrozenLinear.dense` and the groups' `attached` slot, so it works
with every kind of storage. The options class is stateless; parameters live in the modules it attaches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn
from typing_extensions import Self

from lorikeet.base.options import Options
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.linear import FrozenLinear
from lorikeet.quant._contract import Quant
from lorikeet.tokens._contract import Tokenizer


class Adapter(Options):
    """Base of the adapter kinds; fields are `adapter`'s options."""

    path: Path | None = Field(
        None, description="Go on from this adapter: its folder, or a run.", examples=["runs/first"]
    )
    peft_type: ClassVar[str]  # adapter_config.json's peft_type
    usual_rate: ClassVar[float] = 2e-4  # a learning rate to begin with, for models of one to four billion weights
    only_at_start: ClassVar[tuple[str, ...]] = ()  # options that say how it begins: without effect beside `path`
    merge_refusal: ClassVar[str | None] = None  # one sentence: why this kind cannot be folded into the weights
    noise_refusal: ClassVar[str | None] = None  # the same: why nothing can be drawn for a row's tokens (train/noise.py)

    @property
    def beside_refusal(self) -> str | None:
        """One sentence: why this adapter cannot be kept beside the base; None where it can."""
        return None

    def quant_refusal(self, quant: Quant) -> str | None:
        """One sentence: why this adapter cannot train over linears that are kept as `quant`; None where it can."""
        return None

    @property
    def reaches_layers(self) -> bool:
        """Whether gradients go through the network's layers, so that a step keeps what they computed."""
        return True

    @property
    def context_taken(self) -> int:
        """Positions of the model's context that the adapter fills before every text."""
        return 0

    def with_tokenizer(self, tokenizer: Tokenizer) -> Self:
        """The options with what only the model's tokenizer can say filled in; asked before `attach`."""
        return self

    def function(self, model: CausalLM) -> dict[str, Any]:
        """What decides the network's function beside the trained tensors, by option. What goes on from an adapter has
        to agree with it in this."""
        return self.model_dump(mode="json", exclude={"kind", "path", *self.only_at_start})

    def attach(self, model: CausalLM, *, seed: int) -> None:
        """Add the trainable parts, initialised from `seed`. Raises RecipeError where a target matches nothing."""
        raise NotImplementedError

    def parameters(self, model: CausalLM) -> dict[str, nn.Parameter]:
        """What trains, under the names it has in adapter_model.safetensors (PEFT's layout), or like them."""
        raise NotImplementedError

    def kept_per_token(self, model: CausalLM) -> int:
        """How many numbers it adds to what a step keeps of each token for its backward pass, attached; about."""
        return 0

    def smaller(self) -> list[dict[str, Any]]:
        """Other values of its options with which it takes less memory, mild to severe: [{"r": 4}]."""
        return []

    def learning_rate_factors(self, model: CausalLM) -> dict[str, float]:
        """The factor on the step's learning rate of parameters, by name, where it is not 1."""
        return {}

    def tensors(self, model: CausalLM) -> dict[str, Tensor]:
        """What adapter_model.safetensors holds: the parameters, or views of them where they lie there in parts."""
        return dict(self.parameters(model))

    def resumed(self, model: CausalLM) -> dict[str, Tensor]:
        """What a run needs besides `tensors` to go on, where those do not say it. Checkpoints hold it."""
        return {}

    def from_peft_tensors(self, model: CausalLM, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A file's tensors under the names and in the shapes of `tensors`, where PEFT has another layout for them."""
        return tensors

    def merged(self, linear: FrozenLinear) -> Tensor:
        """The linear's weight [out, in] with the update folded in, float32 (float64 for float64 models)."""
        raise NotImplementedError

    def merged_bias(self, linear: FrozenLinear) -> Tensor | None:
        """The linear's bias as trained."""
        return linear.bias

    def merged_others(self, model: CausalLM) -> dict[str, Tensor]:
        """The checkpoint's other tensors that merging changes or adds (embeddings, norms, a head), by their names
        there, dense."""
        return {}

    def merged_settings(self, model: CausalLM, settings: dict[str, Any]) -> dict[str, Any]:
        """What merging changes in config.json, which says `settings` of the base."""
        return {}

    def peft_config(self, model: CausalLM) -> dict[str, Any]:
        """adapter_config.json, as PEFT reads it."""
        raise NotImplementedError

    @classmethod
    def reads(cls, config: dict[str, Any]) -> bool:
        """Whether an adapter_config.json is one of this kind's."""
        return config.get("peft_type") == cls.peft_type

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> Adapter:
        """Options from an adapter_config.json. Raises RecipeError for a setting that we do not have."""
        raise NotImplementedError


def halves(size: int, least: int = 4) -> list[int]:
    """Half, a quarter and an eighth of a size, down to `least`."""
    return [part for part in dict.fromkeys((size // 2, size // 4, size // 8)) if part >= least] or (
        [least] if size > least else []
    )
