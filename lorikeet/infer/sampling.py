"""From logits to the next token, each reply with its own seed: what else is in the batch changes nothing.

The order is transformers': logit bias, repetition penalty (then presence and frequency penalty, which it does not have;
they are OpenAI's), what a guide allows, temperature, top-k, top-p, min-p, then one draw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from lorikeet.base.errors import RecipeError
from lorikeet.base.kinds import kind_field
from lorikeet.base.options import Options
from lorikeet.base.rng import torch_rng
from lorikeet.infer.dense_copies import Dequantize
from lorikeet.infer.guides._contract import Guide, read_guide
from lorikeet.infer.guides.none import NoGuide
from lorikeet.infer.logprobs import TokenLogprob, token_logprob
from lorikeet.tokens._contract import Tokenizer

NEVER = float("-inf")
COLDEST = 1e-9  # a smaller temperature is this one: float32 would call some of them 0
HOTTEST = 1e30  # all tokens are alike long before; but what a guide bans stays banned, which float32's infinity undoes
LIKELY = 1024  # tokens that top-p looks at first: sorting a whole vocabulary takes longer than a small model's pass


class GenerateOptions(Options):
    """The recipe's `generate` section, and the sampling options of predict, chat and the server."""

    max_new_tokens: int = Field(256, ge=1, description="A reply is cut after this many tokens.")
    temperature: float = Field(0.0, ge=0, le=HOTTEST, description="0 always takes the most likely token.")
    top_k: int = Field(0, ge=0, description="Draw from the k most likely tokens only; 0 for all.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Draw from the fewest most likely tokens that have this probability together."
    )
    min_p: float = Field(
        0.0, ge=0, le=1, description="Draw from tokens at least this times as likely as the most likely one."
    )
    repetition_penalty: float = Field(
        1.0, ge=0.01, le=100, description="Above 1, tokens already seen become less likely."
    )
    presence_penalty: float = Field(0.0, ge=-2, le=2, description="Taken off the logit of a token the reply has.")
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="Taken off a token's logit each time the reply has it."
    )
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] = Field(
        {}, description="Added to the logits of tokens, by id: -100 bans a token, 100 makes it the only one."
    )
    seed: int = Field(0, ge=0, description="Replies with the same seed and prompt are the same.")
    stop: list[str] = Field([], description="A reply also ends before any of these strings.")
    guide: Annotated[kind_field("lorikeet.infer.guides", Guide), BeforeValidator(read_guide)] = Field(  # type: ignore[valid-type]
        NoGuide(), description="What a reply must be; also the name of a .json (schema) or .lark (grammar) file."
    )
    logprobs: int | None = Field(
        None, ge=0, description="How likely each token was, and this many of the most likely ones in its place."
    )
    num_beams: int = Field(
        1, ge=1, le=1024, description="Beams of a beam search; 1 is none. The best one is the reply."
    )
    length_penalty: float = Field(
        1.0,
        ge=-10,
        le=10,
        description="A beam's score is divided by its length to this power: above 0 favours long replies.",
    )
    early_stopping: bool | Literal["never"] = Field(
        False,
        description="When a beam search ends: true at num_beams ended beams; false when better ones are unlikely; "
        "never when none can come.",
    )
    deterministic: bool = Field(
        False, description="The same reply to the last bit whatever else is answered at the same time; takes longer."
    )
    batch_size: int = Field(32, ge=1, description="Replies generated at once.")
    dequantize: Dequantize = Field(
        "auto",
        description="Keep quantised weights dense while replies are made: always, never, or where no kernel answers "
        "as fast with them as they are kept and an eighth of the memory stays free. The samples of a training run "
        "never do.",
    )

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        """Recipes of runs that were made before `dequantize` had this name go on being read."""
        if isinstance(values, dict) and "dense_copies" in values:
            rest = {name: value for name, value in values.items() if name != "dense_copies"}
            return {"dequantize": "auto" if values["dense_copies"] is True else values["dense_copies"]} | rest
        return values

    @model_validator(mode="after")
    def _beams(self) -> GenerateOptions:
        if self.num_beams > 1 and self.temperature > 0:
            raise ValueError("num_beams takes the most likely replies, so temperature must be 0")
        if self.num_beams > 1 and self.logprobs is not None:
            raise ValueError("logprobs are of replies without num_beams")
        return self


class Sampler:
    """Chooses the tokens of one reply. `name` tells replies of one seed apart.

    `tokenizer` and `stop_ids` (what ends a reply) are what `guide`, `logprobs` and `logit_bias` are about."""

    def __init__(
        self,
        options: GenerateOptions,
        prompt: Sequence[int],
        name: object,
        tokenizer: Tokenizer | None = None,
        stop_ids: Sequence[int] = (),
    ):
        self.options, self.tokenizer = options, tokenizer
        self.seen = set(prompt) if options.repetition_penalty != 1 else set()
        self.said: Counter[int] = Counter()  # in the reply
        self.logprob: TokenLogprob | None = None  # of the last token picked, where options.logprobs asks for it
        self.generator = torch_rng(options.seed, "sample", name)
        self._bias = _bias(options.logit_bias, tokenizer)
        guided = not isinstance(options.guide, NoGuide)
        assert tokenizer is not None or not (guided or options.logprobs is not None)
        self._matcher = options.guide.compile(tokenizer, stop_ids) if guided else None
        if options.logprobs is not None and tokenizer is not None:
            _ = tokenizer.spelling  # refused now, not at the first token
        counts = options.presence_penalty != 0 or options.frequency_penalty != 0
        self._plain = options.repetition_penalty == 1 and not counts and self._bias is None and not guided
        self._counts = counts

    @property
    def greedy(self) -> bool:
        """Whether the network's most likely token is taken, whatever came before."""
        return self.options.temperature == 0 and self._plain

    @property
    def ended(self) -> Literal["stop", "length"] | None:
        """Whether the guide has nothing more to come: "stop" where it is fulfilled, "length" where it cannot be."""
        return None if self._matcher is None else self._matcher.ended

    @property
    def guided(self) -> bool:
        """Whether a guide decides where the reply ends."""
        return self._matcher is not None

    def accepts(self, text: str) -> bool:
        """Whether `text` may be the whole reply: what the guide asks for."""
        return self._matcher is None or self._matcher.accepts(text)

    def scores(self, logits: Tensor) -> Tensor:
        """What the next token is chosen by, from logits [V] float32 on the CPU: biases, penalties, then the guide."""
        if self._bias is not None:
            logits = logits.index_add(0, *self._bias)
        logits = penalised(logits, self.seen, self.options.repetition_penalty)
        if self._counts and self.said:
            counts = torch.tensor(list(self.said.values()), dtype=logits.dtype)
            off = self.options.presence_penalty + self.options.frequency_penalty * counts
            logits = logits.index_add(0, torch.tensor(list(self.said)), -off)
        if self._matcher is not None:
            banned = self._matcher.allowed().logical_not()
            more = len(logits) - len(banned)  # some networks have logits for more ids than there are tokens
            logits = logits.masked_fill(banned if more == 0 else F.pad(banned, (0, more), value=True), NEVER)
        return logits

    def pick(self, logits: Tensor) -> int:
        """The next token from logits [V] float32 on the CPU."""
        scores = self.scores(logits)
        if self.options.temperature == 0:
            token = int(scores.argmax())
        else:
            token = int(torch.multinomial(distribution(scores, self.options), 1, generator=self.generator))
        if self.options.logprobs is not None and self.tokenizer is not None:
            first = not self.said.total()
            self.logprob = token_logprob(logits, token, self.options.logprobs, self.tokenizer, first=first)
        self.take(token)
        return token

    def take(self, token: int) -> None:
        """Remember the next token of the reply."""
        self.said[token] += 1
        if self.options.repetition_penalty != 1:
            self.seen.add(token)
        if self._matcher is not None:
            self._matcher.take(token)

    def fork(self) -> Sampler:
        """Another that remembers the same, for a beam that goes on otherwise."""
        twin = copy(self)
        twin.seen, twin.said = set(self.seen), Counter(self.said)
        twin._matcher = None if self._matcher is None else self._matcher.copy()
        return twin


def pick_each(logits: Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """The next token of each reply from its row of logits [B, V] float32, on any device."""
    found: list[int] = (
        logits.argmax(-1).tolist() if any(sampler.greedy for sampler in samplers) else [0] * len(samplers)
    )
    others = [i for i, one in enumerate(samplers) if not one.greedy or one.options.logprobs is not None]
    if others:
        rows = logits.cpu() if len(others) == len(samplers) else logits[others].cpu()
        for i, row in zip(others, rows):
            found[i] = samplers[i].pick(row)
    return found


def penalised(logits: Tensor, seen: set[int], penalty: float) -> Tensor:
    """Keskar et al. 2019 (CTRL): positive logits of seen tokens are divided, negative ones multiplied."""
    if penalty == 1 or not seen:
        return logits
    logits, index = logits.clone(), torch.tensor(sorted(seen))
    values = logits[index]
    logits[index] = torch.where(values > 0, values / penalty, values * penalty)
    return logits


def distribution(logits: Tensor, options: GenerateOptions) -> Tensor:
    """Probabilities [V] after temperature, top-k, top-p and min-p. At least one token stays."""
    # the best is 0, so that however small the temperature is nothing becomes infinite; 0 / 0 would be no number
    logits = (logits - logits.max()) / max(options.temperature, COLDEST)
    if 0 < options.top_k < len(logits):
        threshold = logits.topk(options.top_k).values[-1]
        logits = logits.masked_fill(logits < threshold, NEVER)
    if options.top_p < 1:
        logits = _nucleus(logits, options.top_p)
    probabilities = logits.softmax(-1)
    if options.min_p > 0:
        unlikely = probabilities < options.min_p * probabilities.max()
        probabilities = logits.masked_fill(unlikely, NEVER).softmax(-1)
    return probabilities


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Only the fewest most likely tokens that have the probability `top_p` together."""
    best, index = logits.topk(min(LIKELY, len(logits)))
    probabilities = (best - logits.logsumexp(-1)).exp()
    if len(best) < len(logits) and float(probabilities.sum()) < top_p:
        best, index = logits.sort(descending=True)
        probabilities = best.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # probability of all better tokens
    kept = before < top_p
    kept[0] = True
    return torch.full_like(logits, NEVER).index_copy(0, index[kept], best[kept])


def _bias(wanted: Mapping[int, float], tokenizer: Tokenizer | None) -> tuple[Tensor, Tensor] | None:
    """(ids, values) to add. Raises RecipeError for an id that is no token."""
    if not wanted:
        return None
    size = None if tokenizer is None else tokenizer.vocab_size
    wrong = [id for id in wanted if id < 0 or (size is not None and id >= size)]
    if wrong:
        raise RecipeError(
            "generate.logit_bias: no token has this id",
            given=wrong[0],
            allowed="0 or more" if size is None else f"0 to {size - 1}",
        )
    return torch.tensor(list(wanted)), torch.tensor(list(wanted.values()), dtype=torch.float32)
