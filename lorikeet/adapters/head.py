"""The output head trains, on request with the embedding.

Where the head is the embedding's own tensor, training the head alone unties the two: it becomes a table of its own,
which begins as a copy, and merging writes it with `tie_word_embeddings: false`. With `embeddings` a tied table stays
one, and has both gradients.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from lorikeet.adapters._own_tensors import OwnTensors
from lorikeet.base.errors import RecipeError
from lorikeet.base.log import note
from lorikeet.models.causal_lm import CausalLM

MIB = 1 << 20


class TrainedHead(OwnTensors):
    """The head, perhaps with the embedding."""

    kind: Literal["head"] = "head"
    embeddings: bool = Field(False, description="Train the embedding, too; a tied head then stays tied.")
    peft_type: ClassVar[str] = "LORIKEET_HEAD"

    def chosen(self, model: CausalLM) -> set[str]:
        """See `OwnTensors.chosen`; a tied head is untied here where it trains alone."""
        embedding = embedding_name(model)
        tied = head_names(model) == {embedding}
        if tied and not self.embeddings:
            self._untie(model)
        return head_names(model) | ({embedding} if self.embeddings else set())

    def _untie(self, model: CausalLM) -> None:
        if not model.untie():
            raise RecipeError(
                "adapter.kind: the head is the embedding's own tensor, and this network cannot have one of its own",
                given="head",
                allowed="adapter.embeddings=true, which trains the tensor that they share",
                try_="adapter.embeddings=true",
            )
        size = model.head.weight.nbytes / MIB
        note(f"the head was tied to the embedding: it trains as a table of its own, {size:.0f} MiB more")

    def merged_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        """See `Adapter.merged_settings`."""
        return {} if self.embeddings else {"tie_word_embeddings": False}


def head_names(model: CausalLM) -> set[str]:
    """The checkpoint's names of the head's weight (the embedding's name where it is tied) and bias."""
    tensors = [one for one in (model.head.weight, model.head.bias) if one is not None]
    return {slot.name for slot in model.slots() if any(slot.holds is one for one in tensors)}


def embedding_name(model: CausalLM) -> str:
    """The checkpoint's name of the table in which tokens are looked up."""
    weight = getattr(model.embedder(), "weight", None)
    (name,) = (slot.name for slot in model.slots() if (slot.write is None if weight is None else slot.holds is weight))
    return name
