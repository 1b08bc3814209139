"""Prompts in, replies out, many at once: a model that answers, with what it was trained with.

Prompts of like length are read together; where a few replies have ended, as many prompts that wait take their rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any

from lorikeet.base.errors import LorikeetError, ModelError
from lorikeet.base.log import note
from lorikeet.base.nouns import Conversation
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.data.encode import encode_prompt
from lorikeet.data.templates._contract import Template
from lorikeet.infer.batch import Batch
from lorikeet.infer.dense_copies import Dequantize, decide, dense_copies
from lorikeet.infer.reply import Event as Event
from lorikeet.infer.reply import Reason as Reason
from lorikeet.infer.reply import Request as Request
from lorikeet.infer.sampling import GenerateOptions
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.kv_cache import PAGE, pages_for
from lorikeet.quant._contract import Quant
from lorikeet.tokens._contract import Tokenizer

READ_TOKENS = 4096  # of prompts that are read in one pass, at most


class Engine:
    """A model that answers, with the tokenizer and template it was trained with."""

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        template: Template,
        identity: str = "",
        base: tuple[Checkpoint, Quant] | None = None,
    ):
        """`identity` names the weights, base and adapter: half-done work of other weights is not gone on with. `base`,
        and how it is kept: adapters that are loaded later must have been trained on it."""
        self.base = base
        self.model, self.tokenizer, self.template, self.identity = model, tokenizer, template, identity
        # the template's own ends first; a model may still say its own under a template of text
        self.stop_ids = tuple(dict.fromkeys((*template.stop_ids, *tokenizer.eos_ids)))
        self._said: set[bool] = set()  # which decisions about copies

    def prompt(self, conversation: Conversation) -> list[int]:
        """The ids after which the model answers: exactly those it was trained on."""
        return encode_prompt(conversation, self.template, self.tokenizer)

    def replies(
        self, conversations: Sequence[Conversation], options: GenerateOptions
    ) -> Iterator[tuple[int, str, Reason]]:
        """(index, reply, reason) of each conversation, in the order in which they finish."""
        texts: dict[int, list[str]] = {}
        requests = [Request(i, self.prompt(conversation), options) for i, conversation in enumerate(conversations)]
        for event in self.generate(requests):
            texts.setdefault(event.name, []).append(event.text)
            if event.reason is not None:
                yield event.name, "".join(texts.pop(event.name)), event.reason

    def generation_config(self) -> dict[str, Any]:
        """generation_config.json: where a reply begins and ends, for other engines."""
        name, settings = self.tokenizer.bos_token, self.model.shape.config
        bos = self.tokenizer.control.get(name) if name else settings.get("bos_token_id")
        return {"bos_token_id": bos, "eos_token_id": list(self.stop_ids), "pad_token_id": self.tokenizer.pad_id}

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Events of all requests. Raises ModelError for a prompt that leaves no room to answer."""
        for request in requests:
            self.check(request)
        if not requests:
            return
        beams = [request.options.num_beams for request in requests]
        rows = max(*beams, min(sum(beams), min(request.options.batch_size for request in requests)), 1)
        longest = max(len(request.prompt) + self.room(request) for request in requests)
        asked = {request.options.dequantize for request in requests}
        batch = Batch(
            self,
            rows=rows,
            cache_tokens=rows * pages_for(longest) * PAGE,
            prefill_tokens=READ_TOKENS,
            patient=True,
            dequantize=False if False in asked else "auto" if "auto" in asked else True,
        )
        with closing(batch):
            for request in sorted(requests, key=lambda request: len(request.prompt)):
                batch.add(request)
            while batch.busy:
                yield from batch.step()

    def copies(self, asked: Dequantize, beside: int, rows: int) -> AbstractContextManager[None]:
        """Dense copies of quantised weights where that is `asked`, and `beside` so many bytes, for passes of so many
        `rows` of new tokens. What was decided is said once."""
        if asked is False:
            return nullcontext()
        decided = decide(self.model, asked, beside, rows)
        if decided is not None and decided.keep not in self._said:
            self._said.add(decided.keep)
            note(str(decided))
        return dense_copies(self.model, asked, rows) if decided is not None and decided.keep else nullcontext()

    def check(self, request: Request) -> None:
        """Raise LorikeetError for a request that cannot be answered."""
        limit = self.model.shape.max_position
        if not request.prompt:
            raise LorikeetError("an empty prompt cannot be answered", given=f"request {request.name}")
        if len(request.prompt) >= limit:
            raise ModelError(
                f"the prompt fills the model's context of {limit} tokens",
                given=f"{len(request.prompt)} tokens",
                try_="a shorter prompt, or :clear in a chat",
            )

    def room(self, request: Request) -> int:
        """Tokens that a reply may have."""
        return min(request.options.max_new_tokens, self.model.shape.max_position - len(request.prompt))
