"""Full fine-tuning: the model's own tensors train, all of them or those that are named.

They are kept in float32 (four bytes a weight, with Adam sixteen while a step runs, twelve with
train.optimizer_in_backward) and rounded to the model's dtype as they are used. Weights that
are kept quantised do not train; those beside them (embeddings, norms, linears that quant.target_modules leaves out) do.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from lorikeet.adapters._own_tensors import OwnTensors
from lorikeet.adapters._trained import named, trainable
from lorikeet.base.errors import RecipeError
from lorikeet.models.causal_lm import CausalLM
from lorikeet.quant._contract import Quant
from lorikeet.quant.none import NoQuant


class Full(OwnTensors):
    """The model's own tensors."""

    kind: Literal["full"] = "full"
    target_modules: Literal["all"] | str | list[str] = Field(
        "all",
        description="all, a list of parts of tensors' names between dots (up_proj, layers.29, embed_tokens), or a "
        "regex on the whole name.",
    )
    exclude_modules: str | list[str] | None = Field(
        None, description="Tensors that stay frozen all the same, named as in target_modules.", examples=[["layers.0"]]
    )
    peft_type: ClassVar[str] = "LORIKEET_FULL"
    usual_rate: ClassVar[float] = 2e-5

    def quant_refusal(self, quant: Quant) -> str | None:
        """See `Adapter.quant_refusal`; what is named is known only in the network."""
        if isinstance(quant, NoQuant) or self.target_modules != "all" or self.exclude_modules:
            return None
        return "quantised weights do not train; adapter.target_modules can name tensors that stay dense"

    def chosen(self, model: CausalLM) -> set[str]:
        """See `OwnTensors.chosen`."""
        names = trainable(model)
        chosen = named("adapter.target_modules", self.target_modules, names)
        if self.exclude_modules:
            chosen -= named("adapter.exclude_modules", self.exclude_modules, names)
        if not chosen:
            raise RecipeError(
                "adapter.target_modules, adapter.exclude_modules: nothing is left that would train",
                given=f"{self.target_modules} without {self.exclude_modules}",
                allowed="at least one tensor of the model",
                try_="adapter.target_modules=all",
            )
        return chosen
