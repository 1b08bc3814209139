"""From logits to the next token, each reply with its own seed: what else is in the batch changes nothing.

Order as in transformers: repetition penalty, temperature, top-k, top-p, then one draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from lorikeet.base.options import Options
from lorikeet.base.rng import torch_rng
from lorikeet.infer.dense_copies import Dequantize


class GenerateOptions(Options):
    """The recipe's `generate` section, and the sampling options of predict and chat."""

    max_new_tokens: int = Field(256, ge=1, description="A reply is cut after this many tokens.")
    temperature: float = Field(0.0, ge=0, description="0 always takes the most likely token.")
    top_k: int = Field(0, ge=0, description="Draw from the k most likely tokens only; 0 for all.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Draw from the fewest most likely tokens that have this probability together."
    )
    repetition_penalty: float = Field(1.0, gt=0, description="Above 1, tokens already seen become less likely.")
    seed: int = Field(0, ge=0, description="Replies with the same seed and prompt are the same.")
    stop: list[str] = Field([], description="A reply also ends before any of these strings.")
    batch_size: int = Field(32, ge=1, description="Replies generated at once.")
    dequantize: Dequantize = Field(
        "auto",
        description="Keep quantised weights dense while replies are made: always, never, or where an eighth of the "
        "memory stays free. The samples of a training run never do.",
    )

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        """Recipes of runs that were made before `dequantize` had this name go on being read."""
        if isinstance(values, dict) and "dense_copies" in values:
            rest = {name: value for name, value in values.items() if name != "dense_copies"}
            return {"dequantize": "auto" if values["dense_copies"] is True else values["dense_copies"]} | rest
        return values


class Sampler:
    """Draws the tokens of one reply. `name` tells replies of one seed apart."""

    def __init__(self, options: GenerateOptions, prompt: Sequence[int], name: object):
        self.options = options
        self.seen = set(prompt) if options.repetition_penalty != 1 else set()
        self.generator = torch_rng(options.seed, "sample", name)

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken, whatever came before."""
        return self.options.temperature == 0 and self.options.repetition_penalty == 1

    def pick(self, logits: Tensor) -> int:
        """The next token from logits [V] float32 on the CPU."""
        logits = penalised(logits, self.seen, self.options.repetition_penalty)
        if self.options.temperature == 0:
            token = int(logits.argmax())
        else:
            token = int(torch.multinomial(distribution(logits, self.options), 1, generator=self.generator))
        if self.options.repetition_penalty != 1:
            self.seen.add(token)
        return token


def pick_each(logits: Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """The next token of each reply from its row of logits [B, V] float32, on any device."""
    if all(sampler.greedy for sampler in samplers):
        found: list[int] = logits.argmax(-1).tolist()
        return found
    return [sampler.pick(row) for sampler, row in zip(samplers, logits.cpu())]


def penalised(logits: Tensor, seen: set[int], penalty: float) -> Tensor:
    """Keskar et al. 2019 (CTRL): positive logits of seen tokens are divided, negative ones multiplied."""
    if penalty == 1 or not seen:
        return logits
    logits, index = logits.clone(), torch.tensor(sorted(seen))
    values = logits[index]
    logits[index] = torch.where(values > 0, values / penalty, values * penalty)
    return logits


def distribution(logits: Tensor, options: GenerateOptions) -> Tensor:
    """Probabilities [V] after temperature, top-k and top-p. At least one token stays."""
    logits = logits / options.temperature
    if 0 < options.top_k < len(logits):
        threshold = logits.topk(options.top_k).values[-1]
        logits = logits.masked_fill(logits < threshold, float("-inf"))
    if options.top_p < 1:
        ordered, index = logits.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # probability of all better tokens
        logits = logits.index_fill(0, index[before >= options.top_p], float("-inf"))
    return logits.softmax(-1)
