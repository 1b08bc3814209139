"""Full fine-tuning: the model's own tensors train, all of them or those that are named.

They are kept in float32 (four bytes a weight, with Adam sixteen while a step runs, twelve with
train.optimizer_in_backward) and rounded to the model's dtype as they are used. PEFT has no layout for this: the run's
checkpoints hold the trained tensors under the model's own names, and merging writes the model's folder. Weights that
are kept quantised do not train; those beside them (embeddings, norms, linears that quant.target_modules leaves out) do.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from lorikeet.adapters._contract import Adapter
from lorikeet.adapters._trained import TrainedPart, master, named, release, released, trainable
from lorikeet.base.errors import RecipeError
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.linear import FrozenLinear
from lorikeet.quant._contract import Quant
from lorikeet.quant.none import NoQuant


class Full(Adapter):
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

    def quant_refusal(self, quant: Quant) -> str | None:
        """See `Adapter.quant_refusal`; what is named is known only in the network."""
        if isinstance(quant, NoQuant) or self.target_modules != "all" or self.exclude_modules:
            return None
        return "quantised weights do not train; adapter.target_modules can name tensors that stay dense"

    def attach(self, model: CausalLM, *, seed: int) -> None:
        """See `Adapter.attach`."""
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
        release(model, chosen)

    def parameters(self, model: CausalLM) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`; under the checkpoint's names."""
        return released(model)

    def merged(self, linear: FrozenLinear) -> Tensor:
        """See `Adapter.merged`."""
        if isinstance(linear.adapter, TrainedPart):
            return linear.adapter.weight.detach()
        return linear.dense(master(linear.stored_dtype))

    def merged_others(self, model: CausalLM) -> dict[str, Tensor]:
        """See `Adapter.merged_others`."""
        of_linears = {f"{name}.{part}" for name, _ in model.linears() for part in ("weight", "bias")}
        return {name: one.detach() for name, one in released(model).items() if name not in of_linears}

    def peft_config(self, model: CausalLM) -> dict[str, Any]:
        """See `Adapter.peft_config`: ours alone, of a kind that PEFT says it does not know."""
        return {
            "peft_type": self.peft_type,
            "task_type": "CAUSAL_LM",
            "target_modules": self.target_modules,
            "exclude_modules": self.exclude_modules,
            "inference_mode": True,
        }

    @classmethod
    def from_peft(cls, config: dict[str, Any]) -> Full:
        """See `Adapter.from_peft`."""
        return cls(target_modules=config["target_modules"], exclude_modules=config.get("exclude_modules"))
