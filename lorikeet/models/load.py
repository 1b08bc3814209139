"""From a checkpoint to a network: build it empty, then read, freeze and place one tensor at a time.

The peak is the network as kept plus one dense tensor, whatever the file's own dtype or layout.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from lorikeet.base.errors import CheckpointError, ModelError
from lorikeet.base.kinds import family_files, file_class
from lorikeet.base.log import note
from lorikeet.base.options import Options
from lorikeet.base.tensor_file import finite
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.kernels import Kernels
from lorikeet.models.build import Build
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.families._contract import Family
from lorikeet.models.huggingface import Transformers, needless_trust
from lorikeet.models.mapped_embedding import mapped_embedding
from lorikeet.models.slots import Slot
from lorikeet.models.spec import DecoderSpec, Spec
from lorikeet.models.stored import StoredLinears, fitting, refuse_unknown, stored_quant
from lorikeet.quant._contract import Quant

_DERIVED = re.compile(r"inv_freq$|rope_freqs|rope_factors|^lm_head\.|^output\.weight$|\.masked_bias$|\.attn\.bias$")

Dtype = Literal["auto", "bfloat16", "float16", "float32", "float64"]
NetworkSource = Literal["auto", "native", "transformers"]


@dataclass(frozen=True)
class Choice:
    """Where a checkpoint's network comes from: `family` is the path of someone's own."""

    family: str | None = None
    source: NetworkSource = "auto"
    trust_remote_code: bool = False


class ModelOptions(Options):
    """The recipe's `model` section."""

    path: str = Field(description="What to fine-tune: an alias (smollm2-135m), a folder, a .gguf file, or a hub name.")
    family: str | None = Field(
        None, description="Your own .py file that says how to build the network, for one that Lorikeet does not know."
    )
    source: NetworkSource = Field(
        "auto",
        description="Whose network: native is Lorikeet's own, transformers that package's (extra hf); auto takes the "
        "native one where there is one.",
    )
    trust_remote_code: bool = Field(
        False, description="Run code that comes with the model, for networks that transformers itself does not know."
    )
    add_tokens: list[str] = Field(
        [],
        description="Control tokens that the model does not have yet, for a template to use. Their rows begin as the "
        "mean of all others, and they alone train in embedding and head, beside any adapter.",
        examples=[["<|im_start|>", "<|im_end|>"]],
    )
    dtype: Dtype = Field(
        "auto", description="Of frozen weights and activations; auto takes bfloat16 where it is fast, else float32."
    )
    device: str = Field("auto", description="auto takes a CUDA device where there is one, else the CPU.")
    allow_pickle: bool = Field(
        False, description="Read pytorch_model.bin (weights only) where there is no safetensors."
    )
    allow_code: bool = Field(
        False,
        description="For commands that open a run, an adapter or a model: run code that its recipe.yaml or "
        "lorikeet.json names, where no training here has run it before. What a recipe names runs anyway when it is "
        "trained by.",
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads; by default as many as there are cores this process may use."
    )
    kernels: Kernels = Field(
        "auto",
        description="auto computes on the CPU with kernels in C++, compiled at first use where there is a compiler; "
        "eager with plain PyTorch.",
    )

    @property
    def choice(self) -> Choice:
        """Where the network comes from."""
        return Choice(self.family, self.source, self.trust_remote_code)


def pick_device(device: str) -> torch.device:
    """The device `model.device` stands for. Raises ModelError for one that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()  # `meta` makes tensors, but holds no numbers
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"model.device: no device '{device}' here",
            given=device,
            allowed="auto cpu cuda cuda:N",
            try_="model.device=cpu",
        ) from error
    return chosen


def pick_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """The dtype `model.dtype` stands for; auto times a matmul on the CPU and asks a GPU."""
    if dtype != "auto":
        return getattr(torch, dtype)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type != "cpu":
        return torch.float32
    # in turns: while others compute here, one of the two would be timed in a worse moment
    rounds = [(_matmul_seconds(torch.bfloat16), _matmul_seconds(torch.float32)) for _ in range(4)]
    narrow, wide = (min(times) for times in zip(*rounds))
    return torch.bfloat16 if narrow < 0.8 * wide else torch.float32


def _matmul_seconds(dtype: torch.dtype) -> float:
    a, b = torch.ones(1024, 768, dtype=dtype), torch.ones(768, 1024, dtype=dtype)
    start = time.perf_counter()
    a @ b
    return time.perf_counter() - start


def families() -> Iterator[Family]:
    """Every family of the folder."""
    for family in family_files("lorikeet.models.families", Family):
        yield family()


def identify(checkpoint: Checkpoint, choice: Choice | str | None = None) -> tuple[Family, Spec]:
    """The family of a checkpoint and what it says about the network; a string is the path of someone's own family.

    Raises ModelError for an unknown one, MissingExtra where transformers is asked for and not installed."""
    choice = choice if isinstance(choice, Choice) else Choice(choice)
    own = None if choice.family is None else file_class(Path(choice.family), Family)()
    known = [own] if own is not None else [] if choice.source == "transformers" else list(families())
    for candidate in known:
        if candidate.matches(checkpoint):
            if choice.trust_remote_code:
                raise needless_trust(candidate.kind)
            return candidate, candidate.spec(candidate.config(checkpoint))
    config = checkpoint.config
    named = config.get("model_type") or config.get("general.architecture")
    other = None
    if own is None and choice.source != "native":
        other = _of_transformers(checkpoint, choice)
        if other.installed and other.matches(checkpoint):
            return other, other.spec(other.config(checkpoint))
    lacking = other is not None and not other.installed and checkpoint.layout == "hf"
    raise ModelError(
        f"unknown kind of network in {checkpoint.path}",
        given=named or "a config.json without model_type",
        allowed=" ".join(candidate.model_type if own else candidate.kind for candidate in known)
        or "a Hugging Face folder of a causal language model that transformers knows",
        try_=None
        if own
        else "pip install 'lorikeet-llm[hf]', for networks of transformers'"
        if lacking
        else "for a network of your own: model.family=FILE.py",
    )


def _of_transformers(checkpoint: Checkpoint, choice: Choice) -> Transformers:
    found = Transformers(checkpoint.path, choice.trust_remote_code)
    if choice.source == "transformers":
        found.check_installed()
    return found


def load(
    checkpoint: Checkpoint,
    quant: Quant,
    *,
    dtype: torch.dtype,
    device: torch.device,
    family: Choice | str | None = None,
) -> CausalLM:
    """The checkpoint's network with its weights, frozen. Raises CheckpointError for a missing or odd tensor."""
    found, spec = identify(checkpoint, family)
    own = (family.family if isinstance(family, Choice) else family) is not None
    quant, stored = fitting(quant, checkpoint), StoredLinears(checkpoint, stored_quant(checkpoint))
    refuse_unknown(checkpoint, stored.quant)
    # a family of someone's own may compute with the numbers: it gets them as precise as they are
    watched = Watched(checkpoint, None if own else dtype)
    mapped = None if own else mapped_embedding(checkpoint, found, spec, dtype, device)
    build = Build(stored.kept(quant), dtype, device, mapped)
    model = found.network(spec, build)
    build.check(model.groups())
    fill(model.slots(), Source(found, spec, watched, stored), dtype=dtype, device=device)
    if mapped is not None and not all(map(finite, mapped.pieces())):  # one pass over the file
        _refuse_numbers(mapped.name, mapped.whole(dtype), dtype)
    _refuse_second_head(Source(found, spec, watched, stored), model)
    found.ready(model)
    if unread := watched.unread():
        named = ", ".join(unread[:3]) + (", ..." if len(unread) > 3 else "")
        note(f"{len(unread)} of {len(checkpoint.names())} tensors have no place in this network: {named}")
    return model


def own_tensors(checkpoint: Checkpoint, choice: Choice) -> Callable[[str], Tensor]:
    """Reads the checkpoint's tensor that goes by a name in its network. A head that the checkpoint ties to its
    embedding is that; an adapter may have given it a table of its own."""
    family, spec = identify(checkpoint, choice)

    def read(name: str) -> Tensor:
        if isinstance(spec, DecoderSpec) and spec.tied and name == f"{spec.names.head}.weight":
            name = f"{spec.names.embedding}.weight"
        return family.read(checkpoint, name, spec)

    return read


@dataclass(frozen=True)
class Source:
    """Where tensors come from: a checkpoint, and how its family and its quantisation say they lie there."""

    family: Family
    spec: Spec
    checkpoint: Watched
    stored: StoredLinears


def fill(slots: Iterable[Slot], source: Source, *, dtype: torch.dtype, device: torch.device) -> None:
    """Read each slot's tensor and place it. Raises CheckpointError for one that is missing or has another shape."""
    for slot in slots:
        if slot.write is None:
            gguf = source.checkpoint.layout == "gguf"
            source.checkpoint.leave(source.family.gguf_name(slot.name) if gguf else slot.name)
            continue
        if source.stored.fill(slot, source.checkpoint, dtype, device):
            continue
        dense = source.family.read(source.checkpoint, slot.name, source.spec)
        if tuple(dense.shape) != slot.shape:
            raise CheckpointError(
                f"tensor '{slot.name}' has another shape than the config says",
                given=tuple(dense.shape),
                allowed=slot.shape,
            )
        ready = dense.to(device=device, dtype=dtype) if dense.is_floating_point() else dense.to(device)
        if not finite(ready):
            _refuse_numbers(slot.name, dense, dtype)
        slot.write(ready)
        del dense, ready


def _refuse_numbers(name: str, dense: Tensor, dtype: torch.dtype) -> None:
    """Raise CheckpointError about a tensor with numbers that are none, or become none in the model's dtype: every loss
    would be NaN, and learning rates would be blamed."""
    if finite(dense):
        largest = dense.abs().max().item()
        raise CheckpointError(
            f"tensor '{name}' has numbers too large for the model's dtype",
            given=f"{largest:.3g} in {str(dtype).removeprefix('torch.')}",
            allowed=f"at most {torch.finfo(dtype).max:.3g}",
            try_="model.dtype=bfloat16",
        )
    bad = int(dense.numel() - dense.isfinite().sum().item())
    raise CheckpointError(
        f"tensor '{name}' has {bad} numbers that are NaN or infinite",
        given=f"{bad} of {dense.numel()}",
        allowed="finite numbers",
        try_="another copy of the model; a training that diverged leaves such weights",
    )


def _refuse_second_head(source: Source, model: CausalLM) -> None:
    """Raise CheckpointError where the config ties the head to the embedding and the file holds another head.

    A program may take either of them, and the other is then a different model."""
    spec, checkpoint = source.spec, source.checkpoint
    if not isinstance(spec, DecoderSpec) or not spec.tied or checkpoint.layout != "hf":
        return
    name = f"{spec.names.head}.weight"
    if spec.names.head not in source.stored.linears:  # one that is rounded is another in any case
        if name not in checkpoint.names():
            return
        weight = model.head.weight
        stored = source.family.read(checkpoint, name, spec).to(device=weight.device, dtype=weight.dtype)
        if torch.equal(stored, weight):
            return
    raise CheckpointError(
        f"{checkpoint.path}: the config ties the head to the embedding, and the weights hold a head that differs",
        given=f"tie_word_embeddings true (perhaps unsaid), and {name}",
        allowed="one of the two",
        try_='"tie_word_embeddings": false in config.json, if that head was trained',
    )


class Watched:
    """A checkpoint that remembers what was read: a config.json of fewer layers makes a network that runs, too.

    Quantised matrices are read in `dtype`: of an embedding, the float32 copy alone would be the peak of loading."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype | None = None):
        self._checkpoint, self._dtype, self._seen = checkpoint, dtype, set[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._checkpoint, name)

    def read(self, name: str, part: int | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
        """See `Checkpoint.read`."""
        self._seen.add(name)
        if self._dtype is None or dtype is not None or len(self._checkpoint.shape(name)) < 2:
            return self._checkpoint.read(name, part, dtype=dtype)
        return self._checkpoint.read(name, part, dtype=self._dtype)

    def leave(self, name: str) -> None:
        """A tensor has its place, and stays in the file."""
        self._seen.add(name)

    def unread(self) -> list[str]:
        """The tensors that nobody asked for, but those that follow from others (tables of rope, a tied head)."""
        return [name for name in self._checkpoint.names() if name not in self._seen and not _DERIVED.search(name)]
