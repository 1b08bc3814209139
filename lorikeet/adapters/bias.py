"""BitFit (Ben Zaken et al. 2022): the model's biases train, and nothing else; norms on request.

A few thousand numbers of a whole model, over weights kept in any way. Most of today's families have no biases, or only
those of q, k and v (Qwen 1 to 2.5): with `norms` there is something to train in every model.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from lorikeet.adapters._own_tensors import OwnTensors
from lorikeet.adapters._trained import trainable
from lorikeet.base.errors import RecipeError
from lorikeet.models.causal_lm import CausalLM


class Bias(OwnTensors):
    """Biases, perhaps with the weights of norms."""

    kind: Literal["bias"] = "bias"
    norms: bool = Field(False, description="Train the weights of norms, too.")
    peft_type: ClassVar[str] = "LORIKEET_BIAS"
    usual_rate: ClassVar[float] = 1e-3

    def chosen(self, model: CausalLM) -> set[str]:
        """See `OwnTensors.chosen`."""
        shapes = {slot.name: slot.shape for slot in model.slots()}
        names = trainable(model)
        biases = {name for name in names if name.rpartition(".")[2] == "bias"}
        if not biases and not self.norms:
            raise RecipeError(
                "adapter.kind: the model has no biases that could train",
                given="bias",
                allowed="models with biases; or adapter.norms=true, which trains the weights of norms",
                try_="adapter.norms=true",
            )
        if not self.norms:
            return biases
        return biases | {name for name in names if len(shapes[name]) == 1}  # the weights of all but linears and tables
