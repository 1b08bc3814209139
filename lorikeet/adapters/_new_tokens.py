"""New tokens beside any adapter: the recipe's model.add_tokens adds them, and only their rows train and are saved.

`around` makes of an adapter one of the same kind and options that grows the tables before it attaches, trains the new
rows (models/new_rows.py), and saves them in PEFT's layout (`trainable_token_indices`). Where the adapter trains a
table itself, the rows are part of that. Merging writes the grown tables and the vocabulary's size.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from lorikeet.adapters._contract import Adapter
from lorikeet.adapters._targets import PREFIX
from lorikeet.base.errors import RecipeError
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.new_rows import NewRows, grow, train_rows

KEY = "trainable_token_indices"


class NewTokens(NamedTuple):
    """Tokens first .. first + size."""

    first: int
    size: int


class _Around(Adapter):
    """What `around` puts before a kind's own methods."""

    tokens: ClassVar[NewTokens]

    @property
    def beside_refusal(self) -> str | None:
        """See `Adapter.beside_refusal`."""
        return "its new tokens are rows of the model's own tables"

    @property
    def reaches_layers(self) -> bool:
        """See `Adapter.reaches_layers`: the new rows of the embedding train."""
        return True

    def attach(self, model: CausalLM, *, seed: int) -> None:
        """See `Adapter.attach`."""
        grow(model, *self.tokens)
        super().attach(model, seed=seed)
        train_rows(model, *self.tokens)

    def parameters(self, model: CausalLM) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`."""
        return super().parameters(model) | {
            f"{PREFIX}{name.removesuffix('.weight')}.token_adapter.trainable_tokens_delta": rows.weight
            for name, rows, _ in _tables(model)
        }

    def merged_others(self, model: CausalLM) -> dict[str, Tensor]:
        """See `Adapter.merged_others`."""
        found = super().merged_others(model)
        for name, rows, table in _tables(model):
            whole = table.detach().to(rows.weight.dtype, copy=True)
            rows.write(whole)
            found[name] = whole
        return found

    def merged_settings(self, model: CausalLM, settings: dict[str, Any]) -> dict[str, Any]:
        """See `Adapter.merged_settings`."""
        found, size = super().merged_settings(model, settings), self.tokens.first + self.tokens.size
        inner = settings.get("text_config")
        if isinstance(inner, dict) and size > inner.get("vocab_size", 0):
            found["text_config"] = {**inner, "vocab_size": size}
        if size > settings.get("vocab_size", size):
            found["vocab_size"] = size
        return found

    def peft_config(self, model: CausalLM) -> dict[str, Any]:
        """See `Adapter.peft_config`; by table, as PEFT has it where there are two."""
        ids = list(range(self.tokens.first, self.tokens.first + self.tokens.size))
        leaves = [name.removesuffix(".weight").rpartition(".")[2] for name, _, _ in _tables(model)]
        return super().peft_config(model) | {KEY: dict.fromkeys(leaves, ids) if len(leaves) > 1 else ids}


def around(adapter: Adapter, tokens: NewTokens | None) -> Adapter:
    """The adapter with new tokens beside it; itself where there are none."""
    if tokens is None or isinstance(adapter, _Around):
        return adapter
    kind: Any = type(adapter)
    made: Any = type(kind)(kind.__name__, (_Around, kind), {"__module__": kind.__module__})
    made.tokens = tokens
    whole: Adapter = made.model_construct(adapter.model_fields_set, **dict(adapter))
    if adapter.__pydantic_private__:
        object.__setattr__(whole, "__pydantic_private__", dict(adapter.__pydantic_private__))
    return whole


def tokens_of(adapter: Adapter) -> NewTokens | None:
    """The new tokens beside an adapter."""
    return adapter.tokens if isinstance(adapter, _Around) else None


def from_config(config: dict[str, Any]) -> tuple[dict[str, Any], NewTokens | None]:
    """An adapter_config.json without its new tokens, and those. Raises RecipeError for others than the last ones."""
    named = config.get(KEY)
    if not named:
        return config, None
    rest = {name: value for name, value in config.items() if name != KEY}
    found = list(named.values()) if isinstance(named, dict) else [named]
    ids = found[0]
    if any(other != ids for other in found) or ids != list(range(ids[0], ids[0] + len(ids))):
        raise RecipeError(
            "this adapter trains tokens that do not follow one another, which is not supported",
            given=f"{KEY} {named}",
            allowed="one stretch of tokens, the same in embedding and head",
        )
    return rest, NewTokens(ids[0], len(ids))


def _tables(model: CausalLM) -> list[tuple[str, NewRows, Tensor]]:
    """(the checkpoint's name, the new rows, the table) of each table whose new rows train."""
    found: dict[int, tuple[str, NewRows, Tensor]] = {}
    for module in (model.embedder(), model.head):
        rows, table = getattr(module, "new_rows", None), module.weight
        if isinstance(rows, NewRows) and isinstance(table, Tensor):
            (name,) = (slot.name for slot in model.slots() if slot.holds is table)
            found.setdefault(id(rows), (name, rows, table))
    return list(found.values())
