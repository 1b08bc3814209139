"""Lorikeet fine-tunes large language models on the machine you have, and proves that it worked.

The public names, nothing else. Each is imported when it is first used, so `import lorikeet` stays light. The verbs are
`lorikeet.api.train(recipe)` and its neighbours (`lorikeet.train` is the folder that holds the training loop).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorikeet import api as api
    from lorikeet.base.nouns import Batch as Batch
    from lorikeet.base.nouns import Conversation as Conversation
    from lorikeet.base.nouns import Example as Example
    from lorikeet.base.nouns import Message as Message
    from lorikeet.base.nouns import Origin as Origin
    from lorikeet.config import Recipe as Recipe
    from lorikeet.config import load as load_recipe  # noqa: F401
    from lorikeet.config import save as save_recipe  # noqa: F401

_ERRORS = (
    "LorikeetError",
    "RecipeError",
    "DataError",
    "TemplateError",
    "CheckpointError",
    "TokenizerError",
    "ModelError",
    "DownloadError",
    "OutputError",
    "MissingExtra",
    "TrainingError",
    "CheckFailed",
    "Interrupted",
)
_NOUNS = ("Message", "Conversation", "Origin", "Example", "Batch")
_HOMES = {
    "Recipe": ("lorikeet.config", "Recipe"),
    "load_recipe": ("lorikeet.config", "load"),
    "save_recipe": ("lorikeet.config", "save"),
    **{name: ("lorikeet.base.nouns", name) for name in _NOUNS},
    **{name: ("lorikeet.base.errors", name) for name in _ERRORS},
}

__all__ = ["__version__", "api", *_HOMES]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("lorikeet-llm")
    if name == "api":
        return import_module("lorikeet.api")
    if name not in _HOMES:
        raise AttributeError(f"module 'lorikeet' has no attribute '{name}'")
    module, attribute = _HOMES[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
