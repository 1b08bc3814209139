"""From what the data, the model and the machine are like to the numbers of a recipe that fits. A pure function.

Nothing here is clever: each number follows from one fact by a rule that its comment in the recipe repeats, so a person
can disagree with it. What had to give way (a shorter max_length, recomputed layers) is said in `Choice.told`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from lorikeet.base.errors import ModelError
from lorikeet.plan.look import Look
from lorikeet.plan.memory import GIB, Memory, Sizes, Trained, peak_memory, training_flops, training_seconds
from lorikeet.plan.purposes import Purpose

ROW_TOKENS = (2048, 1536, 1024, 768, 512, 256)
LEAST_LENGTH = 64
LORA_RATE = 2e-4  # the learning rate that the purposes' are relative to
USED_MEMORY = 0.85  # of what is free: estimates are good to a fifth, and other programs want some
# fewer weights lose much in 4 bits (SmolLM2-135M: held-out loss 2.90 for 2.44), and they are not what takes the memory
LEAST_FOR_NF4 = 1_000_000_000
# (up to this many conversations, epochs, examples per step): about a hundred updates at least, then fewer passes
SCHEDULE = ((40, 10, 2), (120, 8, 4), (600, 4, 8), (5_000, 3, 16), (50_000, 2, 16))
LARGE_SCHEDULE = (1, 32)
LEAST_DISTINCT = 20  # fewer conversations leave nothing to hold out
VALIDATION_SHARE, LEAST_VALIDATION, MOST_VALIDATION = 0.05, 2, 100


@dataclass(frozen=True)
class Network:
    """The model as far as a recipe needs to know it."""

    name: str  # as typed: an alias, a path
    family: str
    sizes: Sizes
    max_position: int


@dataclass(frozen=True)
class Method:
    """What trains, as far as a recipe needs to know it."""

    kind: str
    trained: Trained
    usual_rate: float  # where LoRA's is LORA_RATE
    over_nf4: bool  # whether it trains over linears in 4 bits
    context_taken: int = 0  # positions that it fills before every text

    @property
    def heavy(self) -> bool:
        """Whether it trains the base's own weights, so that gradients and averages are what takes the memory."""
        return self.trained.instead > 0

    @classmethod
    def lora(cls, sizes: Sizes, r: int) -> Method:
        """LoRA where only sizes are known."""
        return cls("lora", Trained.lora(sizes, r), LORA_RATE, True)


@dataclass(frozen=True)
class Fit:
    """What stays within a machine's memory."""

    max_length: int
    row_tokens: int
    checkpointing: bool
    nf4: bool  # frozen weights in 4 bits
    in_backward: bool  # the optimizer, so that gradients take no room


@dataclass(frozen=True)
class Machine:
    """The machine as far as a recipe needs to know it."""

    device: str
    memory_bytes: int  # free on the device
    dtype: str  # the one that trains: what model.dtype=auto takes
    bytes_per_value: int
    matmul_flops: float
    usable_cores: int
    cores: int
    busy_elsewhere: float | None = None  # share of the CPU that others took when it was timed


@dataclass(frozen=True)
class Choice:
    """Every number of the recipe, and what to say about it."""

    purpose: Purpose
    max_length: int
    longer: float  # share of the conversations beyond max_length
    row_tokens: int
    checkpointing: bool
    nf4: bool  # frozen weights in 4 bits
    in_backward: bool  # the optimizer, so that gradients take no room
    method: Method
    examples_per_step: int
    epochs: int
    steps: int
    validation: int | None
    learning_rate: float
    attention_only: bool
    max_new_tokens: int
    cadence: int  # steps between validations and checkpoints
    memory: Memory
    epoch_tokens: int
    epoch_seconds: tuple[float, float]
    told: list[str] = field(default_factory=list)


def choose(
    found: Look,
    network: Network,
    machine: Machine,
    purpose: Purpose,
    *,
    held_out: bool = False,
    method: Method | None = None,
) -> Choice:
    """`held_out`: the data bring a validation split. `method`: LoRA of the purpose's rank by default. Raises
    ModelError where nothing of the model fits."""
    method = method or Method.lora(network.sizes, purpose.r)
    asked = _length(found, network.max_position - method.context_taken)
    fits = fit(network, machine, method, asked)
    max_length, row_tokens = fits.max_length, fits.row_tokens
    examples, tokens, trained = _amounts(found, max_length)
    validation = None if held_out else _validation(found.distinct)
    training = max(1, examples - (validation or 0))
    epochs, per_step = next(((e, n) for most, e, n in SCHEDULE if training <= most), LARGE_SCHEDULE)
    epochs += purpose.extra_epochs
    per_step = min(per_step, training)
    steps = max(1, round(math.ceil(training / per_step) * epochs))
    # a step with few conversations never fills a row
    fullest = max(max_length, min(row_tokens, per_step * max_length))
    memory = _memory(network, machine, method, replace(fits, row_tokens=fullest))
    flops = training_flops(
        network.sizes, method.trained, tokens=tokens, trained_tokens=trained, checkpointing=fits.checkpointing
    )
    longer = 0.0 if found.documents else float(np.mean(found.lengths > max_length))
    return Choice(
        purpose=purpose,
        max_length=max_length,
        longer=longer,
        row_tokens=row_tokens,
        checkpointing=fits.checkpointing,
        nf4=fits.nf4,
        in_backward=fits.in_backward,
        method=method,
        examples_per_step=per_step,
        epochs=epochs,
        steps=steps,
        validation=validation,
        learning_rate=_learning_rate(purpose, method, network.sizes.parameters),
        attention_only=network.sizes.experts > 0 and method.kind == "lora",
        max_new_tokens=_new_tokens(found, max_length),
        cadence=max(1, min(500, steps // 4)),
        memory=memory,
        epoch_tokens=tokens,
        epoch_seconds=training_seconds(flops, machine.matmul_flops),
        told=_told(fits, asked),
    )


def _told(fits: Fit, asked: int) -> list[str]:
    """What had to give way."""
    told = []
    if fits.max_length < asked:
        told.append(
            f"memory allows conversations of {fits.max_length} tokens, not the {asked} that the data have: "
            "longer ones are shortened"
        )
    if fits.nf4:
        told.append(
            "the frozen weights are kept in 4 bits (quant.kind=nf4), because 16 do not fit: somewhat worse replies"
        )
    if fits.in_backward:
        told.append("weights move within the backward pass (train.optimizer_in_backward), because gradients do not fit")
    return told


def fit(network: Network, machine: Machine, method: Method, max_length: int) -> Fit:
    """What stays within the machine's memory.

    Large rows first, then recomputed layers, then 4-bit weights of a large model or an optimizer within the backward
    pass, then shorter conversations. Raises ModelError where nothing fits."""
    budget = machine.memory_bytes * USED_MEMORY
    length = max_length
    while True:
        ways = [(False, False, False), (True, False, False)]
        ways += [(True, False, True)] if method.heavy else []
        ways += [(True, True, False)] if method.over_nf4 and network.sizes.parameters >= LEAST_FOR_NF4 else []
        for checkpointing, nf4, in_backward in ways:
            # one conversation alone may be longer than a row; with all layers kept, tiny rows are not worth it
            for row_tokens in ROW_TOKENS if checkpointing else ROW_TOKENS[:-1]:
                tried = Fit(length, max(row_tokens, length), checkpointing, nf4, in_backward)
                memory = _memory(network, machine, method, tried)
                if memory.total <= budget:
                    return replace(tried, row_tokens=row_tokens)
        if length <= 4 * LEAST_LENGTH:
            raise ModelError(
                f"{network.name} does not fit this machine's memory",
                given=f"{machine.memory_bytes / GIB:.1f} GiB free ({machine.device}), {machine.dtype}",
                allowed=f"at least {memory.total / USED_MEMORY / GIB:.1f} GiB for this model",
                try_="a smaller model: docs/models.md lists what fits 8, 16 and 24 GiB",
            )
        length = max(4 * LEAST_LENGTH, length // 2 // 64 * 64)


def _memory(network: Network, machine: Machine, method: Method, fits: Fit) -> Memory:
    return peak_memory(
        network.sizes,
        method.trained,
        bytes_per_value=machine.bytes_per_value,
        row_tokens=fits.row_tokens,
        checkpointing=fits.checkpointing,
        nf4=fits.nf4,
        in_backward=fits.in_backward,
    )


def _length(found: Look, max_position: int) -> int:
    """What 99 % of the conversations do not exceed, in steps of 64; of documents, a window worth learning from."""
    wanted = 1024 if found.documents else found.percentile(0.99)
    if found.documents:
        wanted = min(wanted, int(found.lengths.max()))
    rounded = max(LEAST_LENGTH, -(-wanted // 64) * 64)
    return max(8, min(rounded, max_position))


def _amounts(found: Look, max_length: int) -> tuple[int, int, int]:
    """(examples, tokens, learned tokens) of an epoch over all rows."""
    usable = len(found.lengths) / max(1, len(found.lengths) + found.unusable)
    readable = found.rows.read / max(1, found.rows.read + found.rows.unreadable)
    conversations = max(1.0, found.rows.rows * usable * readable)
    if found.documents:
        stride = max_length // 8  # what a window repeats of the one before
        windows = np.maximum(1, np.ceil((found.lengths - stride) / max(1, max_length - stride)))
        examples = conversations * float(windows.mean())
        return (
            round(examples),
            round(conversations * float(found.lengths.mean())),
            round(conversations * float(found.trained.mean())),
        )
    cut = np.minimum(found.lengths, max_length)
    trained = np.minimum(found.trained, max_length)
    return round(conversations), round(conversations * float(cut.mean())), round(conversations * float(trained.mean()))


def _validation(distinct: int) -> int | None:
    """How many conversations are held out."""
    if distinct < LEAST_DISTINCT:
        return None
    return max(LEAST_VALIDATION, min(MOST_VALIDATION, round(distinct * VALIDATION_SHARE)))


def _learning_rate(purpose: Purpose, method: Method, parameters: int) -> float:
    """Small models take larger steps, large ones smaller; a purpose's is that of LoRA."""
    factor = 2.0 if parameters < 600_000_000 else 0.5 if parameters > 6_000_000_000 else 1.0
    return purpose.learning_rate * factor * method.usual_rate / LORA_RATE


def _new_tokens(found: Look, max_length: int) -> int:
    """Room for 95 % of the replies, in steps of 32."""
    if not len(found.reply_lengths):
        return 128
    longest = int(np.quantile(found.reply_lengths, 0.95, method="higher")) + 1  # the token that ends it
    return max(32, min(512, max_length, -(-longest // 32) * 32))
