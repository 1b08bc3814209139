"""The verbs: prepare, train, evaluate, predict, chat, merge, show. The only folder that joins the layers."""

from lorikeet.api import asking
from lorikeet.api.answering import chat, engine, predict
from lorikeet.api.base import Base, open_base, prepare
from lorikeet.api.evaluating import evaluate
from lorikeet.api.inspecting import check, ledger, show
from lorikeet.api.merging import merge
from lorikeet.api.training import train

__all__ = [
    "Base",
    "asking",
    "chat",
    "check",
    "engine",
    "evaluate",
    "ledger",
    "merge",
    "open_base",
    "predict",
    "prepare",
    "show",
    "train",
]
