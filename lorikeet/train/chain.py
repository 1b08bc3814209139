"""What each step did, as a chain of hashes in metrics.jsonl: the means by which a run that goes on checks itself.

A link holds the ids that were seen, the bits of loss and gradient norm, the hash of all that trains (every so many
steps), and the hash of itself and all links before it. When a run was stopped between two checkpoints, the steps behind
the older one are done again, and each has to come to the link that the interrupted run has left. Two runs with the same
last link (`chain` in summary.json) did the same in every step.

Everything in a link is text, so that nothing is rounded on the way through JSON.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorikeet.base.log import note
from lorikeet.base.nouns import Batch
from lorikeet.train.metrics import Metrics

KIND, START, DIFFERS = "chain", "start", "differs"  # kinds of rows
# Hashing all that trains takes a second for each GiB or two: for 20 MB of a LoRA 30 ms, at every tenth step of seconds
BYTES_A_STEP = 2 << 20
LEAST_STEPS = 10
QUICKER_DEVICES = 10  # their steps take a fraction of the time, and the tensors have to come from there
WORDS = {
    "ids": "the tokens it saw",
    "splits": "how its rows were split",
    "loss": "the loss",
    "grad_norm": "the gradient norm",
    "parameters": "the trained tensors",
}

Link = dict[str, str]


class Chain:
    """The links of a run. `head`: that of the checkpoint it goes on from. `before`: what an interrupted run has left of
    the steps that are done again."""

    def __init__(
        self,
        metrics: Metrics,
        parameters: Mapping[str, nn.Parameter],
        head: str = "",
        before: Mapping[int, Link] = {},
    ):
        self.metrics, self.parameters, self.head, self.before = metrics, parameters, head, before
        size = sum(parameter.numel() * parameter.element_size() for parameter in parameters.values())
        on_cpu = all(parameter.device.type == "cpu" for parameter in parameters.values())
        self.every = max(LEAST_STEPS, -(-size // BYTES_A_STEP)) * (1 if on_cpu else QUICKER_DEVICES)
        self.differs: dict[str, Any] | None = None  # the first step that was done again and came to something else

    def after_step(
        self, step: int, batches: Sequence[Batch], loss: float, grad_norm: float, splits: Iterable[str] = ()
    ) -> str:
        """Write the link of finished step `step` (from 1), and hold it against the one that is known, if one is.
        Returns its hash.

        `splits`: the names of the parts where rows had to be split for memory."""
        link = {"ids": ids_hash(batches), "loss": float(loss).hex(), "grad_norm": float(grad_norm).hex()}
        if found := " ".join(sorted(splits)):  # memory may have ended in any order
            link["splits"] = found
        if step % self.every == 0:
            link["parameters"] = tensors_hash(self.parameters)
        self.head = link["chain"] = linked(self.head, step, link)
        self.metrics.append({"kind": KIND, "step": step, **link})
        self._compare(step, link)
        return self.head

    def splits_of(self, step: int) -> list[str]:
        """How the interrupted run split the rows of step `step` (from 1), which is done again."""
        return self.before.get(step, {}).get("splits", "").split()

    def _compare(self, step: int, link: Link) -> None:
        known = self.before.get(step)
        if known is None or self.differs is not None:
            return
        found = [name for name in WORDS if link.get(name) != known.get(name)]
        if not found:
            return
        self.differs = {"step": step} | {name: {"now": link.get(name), "before": known.get(name)} for name in found}
        self.metrics.append({"kind": DIFFERS, **self.differs})
        note(
            f"step {step} is done again and does not come to what it came to before the stop: "
            f"{', '.join(WORDS[name] for name in found)} {'differs' if len(found) == 1 else 'differ'}. "
            "From here on this is another run than the uninterrupted one; metrics.jsonl and summary.json say so"
        )


def linked(head: str, step: int, link: Mapping[str, str]) -> str:
    """The hash of a link behind `head`."""
    text = "\n".join([head, str(step), *(f"{name}={link[name]}" for name in WORDS if name in link)])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def ids_hash(batches: Sequence[Batch]) -> str:
    """Of the tokens a step sees, row by row, and of what is learned from them with which weight."""
    digest = hashlib.blake2b(digest_size=8)
    for batch in batches:
        for tensor in (batch.tokens, batch.visible_until, batch.predict_at, batch.targets, batch.weights):
            digest.update(str(len(tensor)).encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Of named tensors, on any device."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor.detach()))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def links(rows: Iterable[Mapping[str, Any]]) -> dict[int, Link]:
    """{step: link} of all rows that tell of one: those of the run, and those that a stop has put aside."""
    found: dict[int, Link] = {}
    for row in rows:
        if row.get("kind") == START:
            # what it does not name was done by something else, before a forced change
            found = {step: link for step, link in found.items() if step <= row["step"]}
            found |= {int(step): link for step, link in row.get("again", {}).items()}
        elif row.get("kind") == KIND:
            found[row["step"]] = {name: row[name] for name in (*WORDS, "chain") if name in row}
    return found


def first_wrong(rows: Iterable[Mapping[str, Any]], step: int, head: str) -> int | None:
    """The first step up to `step` whose link does not follow from the ones before it, where the last has to be `head`;
    None where all do."""
    mine = {row["step"]: row for row in rows if row.get("kind") == KIND and row["step"] <= step}
    before = ""
    for number in range(1, step + 1):
        row = mine.get(number)
        if row is None or linked(before, number, row) != row.get("chain"):
            return number
        before = row["chain"]
    return None if before == head else step
