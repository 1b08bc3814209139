"""A network of transformers' behind the contract of `CausalLM`: packed rows where its attention can take a view, padded
batches of whole texts where it cannot.

Which of the two is decided by trying, when the weights are there: a packed row of texts that share a beginning is
computed both ways. Padded batches are the network as transformers runs it, so they are the reference, too.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorikeet.base.errors import ModelError
from lorikeet.base.log import note
from lorikeet.base.prefix_tree import lay_out, sorted_order
from lorikeet.models import _hf_attention as serve
from lorikeet.models._hf_graph import Capture, Layout, Linear
from lorikeet.models._hf_names import Piece
from lorikeet.models.causal_lm import CausalLM, Head, Shape
from lorikeet.models.experts import ExpertGroup
from lorikeet.models.linear import FrozenLinear
from lorikeet.models.slots import Slot, parameter_slot
from lorikeet.ops.attention import PackedView, View
from lorikeet.ops.swiglu import Activation

MASKED = 512  # tokens of a row whose attention is a dense matrix
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.03}


@dataclass(frozen=True)
class Stack:
    """Stacked experts: the module, and of its two tensors the owner and the leaves in a checkpoint."""

    module: str
    gate_up: tuple[str, tuple[str, ...]]
    down: tuple[str, tuple[str, ...]]
    activation: Activation


@dataclass(frozen=True)
class Outline:
    """What was found out about a network without its weights."""

    way: serve.Way
    layers: str  # the name of the list of layers
    head: str  # of the head
    scale: float
    softcap: float | None
    linears: dict[str, Layout]  # by module
    stacks: tuple[Stack, ...]
    pieces: tuple[Piece, ...]
    prefix: str  # that checkpoints of the network without a head lack


class TransformersModel(CausalLM):
    """`network` is transformers', with our linears, experts and head in it."""

    def __init__(self, network: Any, shape: Shape, outline: Outline):
        super().__init__()
        self.network, self.shape, self.outline, self.way = network, shape, outline, outline.way
        self._capture: Capture = network.get_submodule(outline.head)
        self.head = Head(self._capture.weight, self._capture.bias, scale=outline.scale, softcap=outline.softcap)
        self._own = network.config._attn_implementation
        self._tables: dict[int, Tensor] = {}
        taken = inspect.signature(network.forward).parameters.values()
        self._places = any(one.name == "position_ids" or one.kind is one.VAR_KEYWORD for one in taken)
        self._turns = _length_where_rope_turns(network.config.get_text_config())
        self.stands = {name: module for name, module in network.named_modules() if isinstance(module, Linear)}

    @property
    def reads_whole(self) -> bool:
        """See `CausalLM.reads_whole`."""
        return self.way in ("padded", "mask") or self._turns is not None

    def hidden(self, tokens: Tensor, positions: Tensor, view: View) -> Tensor:
        """See `CausalLM.hidden`."""
        cached = not isinstance(view, PackedView)
        long = self._turns is not None and (cached or int(positions.max()) >= self._turns)
        if self.way == "padded" or (self.way == "mask" and cached) or long:
            return self._in_batches(tokens, view)
        if self.way == "mask" and isinstance(view, PackedView):
            parts = _apart(view, tokens, positions)
            return torch.cat([self._packed(*part) for part in parts])
        return self._packed(tokens, positions, view)

    def _packed(self, tokens: Tensor, positions: Tensor, view: View) -> Tensor:
        twice = self.computed_twice(self.shape.layers)
        serving = serve.Serving(view, positions, self.way, self._tables, twice=twice)
        return self._run(tokens[None], serving, positions[None])[0]

    def embedder(self) -> nn.Module:
        """See `CausalLM.embedder`."""
        return self.network.get_input_embeddings()

    def _run(self, tokens: Tensor, serving: serve.Serving, positions: Tensor | None = None) -> Tensor:
        """tokens [B, L] -> what the head is given [B, L, D]."""
        named = serve.NAME if serving.way in ("interface", "mask") else self._own
        if self.network.config._attn_implementation != named:
            self.network.config._attn_implementation = named
        if self._turns is not None:
            _forget_lengths(self.network)
        given = {} if positions is None or not self._places else {"position_ids": positions}
        with serve.entered(serving):
            self.network(input_ids=tokens, use_cache=False, **given)
        return self._capture.take()

    def _in_batches(self, tokens: Tensor, view: View) -> Tensor:
        """The same with each text whole, padded at its end, where causal texts do not look: [T, D]."""
        if not isinstance(view, PackedView):
            raise ModelError(
                "this network reads whole texts, so that no keys and values can stand before them",
                given="padded batches, as transformers runs it",
                try_="adapter.kind=lora",
            )
        paths = _paths(view.visible_until.cpu().numpy())
        states = self._texts([tokens[torch.from_numpy(path).to(tokens.device)] for path in paths])
        first = np.full(len(tokens), -1)
        start = 0
        for path in paths:
            fresh = first[path] < 0
            first[path[fresh]] = start + np.flatnonzero(fresh)
            start += len(path)
        flat = torch.cat([state[: len(path)] for state, path in zip(states, paths)])
        return flat.index_select(0, torch.from_numpy(first).to(flat.device))

    def _texts(self, texts: Sequence[Tensor]) -> list[Tensor]:
        """The hidden states [L, D] of each text; those of like length are one batch."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
        found: dict[int, Tensor] = {}
        while order:
            longest = len(texts[order[0]])
            batch = [i for i in order if 2 * len(texts[i]) > longest]
            if self._turns is not None and longest > self._turns:
                batch = batch[:1]  # its length decides how it is computed
            order = order[len(batch) :]
            rows = torch.stack([F.pad(texts[i], (0, longest - len(texts[i]))) for i in batch])
            serving = serve.Serving(None, rows, "padded", twice=self.computed_twice(self.shape.layers))
            states = self._run(rows, serving)
            found |= dict(zip(batch, states))
        return [found[i] for i in range(len(texts))]

    def settle(self) -> None:
        """Decide how rows are computed, now that the weights are there. Raises ModelError for a network whose tokens
        look ahead."""
        self._refuse_looking_ahead()
        if self.way == "padded":
            self._say_padded("its attention does not go through transformers' interfaces in every layer")
            return
        texts = _texts_to_try(self.shape.vocab_size)
        for share in (True, False) if self._may_share() else (False,):
            why = self._differs(texts, share)
            if why is None:
                self.shares_within = self._turns if share else 0
                return
        self.way = "padded"
        self._say_padded(why or "")

    def _may_share(self) -> bool:
        """Attention of a network's own may count places in the row where it should count positions, in windows longer
        than what is tried: but not where all it knows of places is a bias that it is given."""
        layers = list(self.network.get_submodule(self.outline.layers))
        return self.way != "mask" or all("alibi" in inspect.signature(type(one).forward).parameters for one in layers)

    @torch.no_grad()
    def _refuse_looking_ahead(self) -> None:
        text = torch.from_numpy(_texts_to_try(self.shape.vocab_size)[0]).to(self.device).long()
        whole, start = self._texts([text, text[:5]])
        difference = _difference(start[:5], whole[:5])
        if difference > TOLERANCE.get(self.dtype, 1e-3):
            raise ModelError(
                f"{type(self.network).__name__}: tokens see those after them, so it cannot learn to continue a text",
                given=f"states that differ by {difference:.1g} when more text follows",
                allowed="a causal language model",
            )

    @torch.no_grad()
    def _differs(self, texts: list[np.ndarray], share: bool) -> str | None:
        """How a packed row differs from its texts one by one; None where it does not."""
        tree = lay_out([texts[i] for i in sorted_order(texts)], share=share)
        tokens, positions = (torch.from_numpy(part).to(self.device) for part in (tree.tokens, tree.positions))
        view = PackedView(torch.from_numpy(tree.visible_until), torch.from_numpy(tree.positions))
        wanted = self._in_batches(tokens, view)
        try:
            found = self.hidden(tokens, positions, view)
        except (serve.CannotView, RuntimeError, TypeError, ValueError, AttributeError) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            self._tables.clear()
        difference = _difference(found, wanted)
        allowed = TOLERANCE.get(self.dtype, 1e-3)
        return None if difference <= allowed else f"a packed row differs from its texts by {difference:.1g}"

    def _say_padded(self, why: str) -> None:
        note(f"{self.shape.config.get('model_type')}: texts are computed in padded batches, not in packed rows ({why})")

    def slots(self) -> Iterator[Slot]:
        """See `CausalLM.slots`."""
        linears = {linear.name: linear for group in self.groups() for linear in group.linears}
        for piece in self.outline.pieces:
            owner, _, leaf = piece.key.rpartition(".")
            linear = linears.get(piece.stem)
            if linear is not None and leaf == "weight" and owner in self.stands:
                yield _weight(piece.name, linear, self.outline.linears[owner] == "columns")
            elif linear is not None and leaf == "bias" and owner in self.stands:
                assert linear.bias is not None
                yield parameter_slot(piece.name, linear.bias)
            elif linear is not None and isinstance(getattr(self.network.get_submodule(owner), leaf), ExpertGroup):
                yield _weight(piece.name, linear, False)
            else:
                tensor = getattr(self.network.get_submodule(owner), leaf)
                yield parameter_slot(piece.name, tensor) if piece.rows is None else _rows(piece, tensor)


def _length_where_rope_turns(text: Any) -> int | None:
    """Texts that are longer have other rotary frequencies, all of their tokens; None: nothing depends on lengths."""
    said = getattr(text, "rope_parameters", None) or {}
    ropes = [said, *(value for value in said.values() if isinstance(value, dict))]
    if not {"dynamic", "longrope"} & {rope.get("rope_type") for rope in ropes}:
        return None
    lengths = [rope.get("original_max_position_embeddings") for rope in ropes]
    lengths += [getattr(text, name, None) for name in ("original_max_position_embeddings", "max_position_embeddings")]
    return next((length for length in lengths if isinstance(length, int)), 0)


def _forget_lengths(network: nn.Module) -> None:
    """Rotary tables that remember the longest text so far begin anew, so that a text does not depend on others."""
    for module in network.modules():
        first = getattr(module, "original_inv_freq", None)
        if isinstance(first, Tensor) and hasattr(module, "max_seq_len_cached"):
            module.max_seq_len_cached = module.original_max_seq_len
            module.inv_freq = first.clone()


def _weight(name: str, linear: FrozenLinear, columns: bool) -> Slot:
    takes = partial(linear.take)
    if not columns:
        return Slot(name, (linear.out_features, linear.in_features), linear.write, linear.dense, takes)
    size = (linear.in_features, linear.out_features)
    return Slot(name, size, lambda x: linear.write(x.T), lambda dtype: linear.dense(dtype).T, takes, transposed=True)


def _rows(piece: Piece, tensor: Tensor) -> Slot:
    """Some rows of a tensor that is kept as it is."""
    rows = tensor.flatten(0, 1) if tensor.dim() == 3 else tensor
    part = rows[piece.rows]
    return replace(parameter_slot(piece.name, part.view(piece.shape)), read=lambda dtype: part.view(piece.shape))


def _apart(view: PackedView, tokens: Tensor, positions: Tensor) -> Iterator[tuple[Tensor, Tensor, PackedView]]:
    """The row as shorter rows of whole texts, for attention that computes every query with every key."""
    until, places = view.visible_until, view.positions
    starts = [*torch.nonzero(places == 0).flatten().tolist(), len(until)]
    begin = 0
    for end, following in zip(starts[1:], [*starts[2:], None]):
        if following is None or following - begin > MASKED:
            part = PackedView(until[begin:end] - begin, places[begin:end])
            yield tokens[begin:end], positions[begin:end], part
            begin = end


def _paths(until: np.ndarray) -> list[np.ndarray]:
    """The places of each text of a packed row: from a beginning to where nothing follows."""
    index = np.arange(len(until))
    leaves = index[until <= index + 1]
    return [np.flatnonzero(until[: leaf + 1] > leaf) for leaf in leaves]


def _difference(found: Tensor, wanted: Tensor) -> float:
    """Of nearly all tokens, relative to their length: rounding may send one to another expert."""
    found, wanted = found.double(), wanted.double()
    return torch.quantile((found - wanted).norm(dim=-1) / wanted.norm(dim=-1).clamp(min=1e-12), 0.85).item()


def _texts_to_try(vocabulary: int) -> list[np.ndarray]:
    """Four texts, of which two share a beginning."""
    drawn = np.random.default_rng(0).integers(0, vocabulary, 24).astype(np.int32)
    return [drawn[:9], np.concatenate([drawn[:5], drawn[9:13]]), drawn[13:18], drawn[18:24]]
