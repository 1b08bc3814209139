"""The output head trains, on request with the embedding.

Where the head is the embedding's own tensor, training the head alone unties the two: it becomes a table of its own,
which begins as a copy, and merging writes it with `tie_word_embeddings: false`. With `embeddings` a tied table stays
one, and has both gradients.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from lorikeet.adapters._own_tensors import OwnTensors
from lorikeet.adapters._trained import embedding_name, head_names, is_tied, untie
from lorikeet.models.causal_lm import CausalLM


class TrainedHead(OwnTensors):
    """The head, perhaps with the embedding."""

    kind: Literal["head"] = "head"
    embeddings: bool = Field(False, description="Train the embedding, too; a tied head then stays tied.")
    peft_type: ClassVar[str] = "LORIKEET_HEAD"
    usual_rate: ClassVar[float] = 2e-5

    @property
    def reaches_layers(self) -> bool:
        """See `Adapter.reaches_layers`."""
        return self.embeddings

    def chosen(self, model: CausalLM) -> set[str]:
        """See `OwnTensors.chosen`; a tied head is untied here where it trains alone."""
        embedding = embedding_name(model)
        if is_tied(model) and not self.embeddings:
            untie(
                model,
                option="adapter.kind",
                given="head",
                allowed="adapter.embeddings=true, which trains the tensor that they share",
                try_="adapter.embeddings=true",
            )
        return head_names(model) | ({embedding} if self.embeddings else set())

    def merged_settings(self, model: CausalLM, settings: dict[str, Any]) -> dict[str, Any]:
        """See `Adapter.merged_settings`."""
        return {} if self.embeddings else {"tie_word_embeddings": False}
