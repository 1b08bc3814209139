"""Beam search: the likeliest whole reply among many, by transformers' rules.

Each beam is a reply in the making. Each pass every beam is continued with every token; the likeliest continuations are
looked at, those of them that end are kept by their score (the sum of their tokens' log-probabilities over the number of
tokens to the power `length_penalty`), and the `num_beams` likeliest that do not end go on. The arithmetic is in float32
and in transformers' order, so that the ids are its ids; biases and penalties change log-probabilities here, as there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorikeet.infer.reply import Reply
from lorikeet.infer.sampling import NEVER

NOWHERE = -1.0e9  # the score of a beam that is none yet, as transformers has it


class BeamSearch:
    """Finds one reply. Give `advance` the logits of what follows each beam until it is `done`."""

    def __init__(self, reply: Reply):
        """`reply` has no token yet."""
        self.options, self.room, self.length = reply.request.options, reply.room, 0
        count = self.options.num_beams
        self.beams = [reply] * count  # they go on; none is changed, what follows one is a fork of it
        self.tokens: list[int] = []  # the last of each beam
        self.done = False
        self._ends = len(reply.stop_ids)
        self._scores = torch.full((count,), NOWHERE)  # all beams begin alike, so one of them counts
        self._scores[0] = 0.0
        self._ended: list[Reply | None] = [None] * count  # the best first
        self._ended_scores = torch.full((count,), NOWHERE)
        self._may_improve = True

    @property
    def best(self) -> Reply:
        """The reply, when the search is done."""
        found = self._ended[0]
        if found is None:  # a guide that nothing can follow
            found = self.beams[0].fork()
            found.reason = "length"
        return found

    def advance(self, logits: Tensor) -> list[int]:
        """Continue the beams by logits [num_beams, V]: answers which beam of before each one continues. `tokens` are
        then to be read, unless the search is done."""
        total, parents, tokens = self._continuations(logits)
        self.length += 1
        made = [self._made(parent, token, score) for parent, token, score in zip(parents, tokens, total.tolist())]
        ends = torch.tensor([reply is not None and reply.reason is not None for reply in made])
        self._scores, index = (total + ends.float() * NOWHERE).topk(len(self.beams))
        self._keep(made, total, ends)
        chosen: list[int] = index.tolist()
        self.beams = [made[i] or self.beams[parents[i]] for i in chosen]
        self.tokens = [tokens[i] for i in chosen]
        stuck = all(reply is None or reply.reason is not None for reply in made)
        self.done = stuck or not self._may_improve or (self.options.early_stopping is True and None not in self._ended)
        return [parents[i] for i in chosen]

    def _continuations(self, logits: Tensor) -> tuple[Tensor, list[int], list[int]]:
        """The likeliest continuations: scores, beams, tokens. So many that enough of them do not end."""
        each = logits.cpu().float().log_softmax(-1)
        each = torch.stack([beam.sampler.scores(row) for beam, row in zip(self.beams, each)])
        size, looked_at = each.shape[1], max(2, 1 + self._ends) * len(self.beams)
        total, index = (each + self._scores[:, None]).view(-1).topk(min(looked_at, each.numel()))
        return total, (index // size).tolist(), (index % size).tolist()

    def _made(self, parent: int, token: int, score: float) -> Reply | None:
        """A beam with one token more; None where a guide does not allow the token."""
        if score == NEVER:
            return None
        reply = self.beams[parent].fork()
        reply.sampler.take(token)
        reply.add(token)
        return reply

    def _keep(self, made: Sequence[Reply | None], total: Tensor, ends: Tensor) -> None:
        """The best of those that ended before and of those that end now; of the latter the num_beams likeliest
        continuations count."""
        count, options = len(self.beams), self.options
        scores = total / (self.length**options.length_penalty)
        if options.early_stopping is True and None not in self._ended:
            scores = scores + NOWHERE
        counts = ends & (torch.arange(len(ends)) < count)
        scores = scores + (~counts).float() * NOWHERE
        self._ended_scores, index = torch.cat([self._ended_scores, scores]).topk(count)
        among = [*self._ended, *(reply if counts[i] else None for i, reply in enumerate(made))]
        self._ended = [among[i] for i in index.tolist()]
        self._may_improve = self._could_improve()

    def _could_improve(self) -> bool:
        """Whether the best beam that goes on may come to a better score than the worst that ended: a guess from its
        score now, or with `never` from the best length it can have."""
        options = self.options
        far = options.early_stopping == "never" and options.length_penalty > 0
        hoped = self._scores[0] / ((self.room if far else self.length) ** options.length_penalty)
        worst = self._ended_scores.min()
        return any(bool(hoped > (NOWHERE if reply is None else worst)) for reply in self._ended)
