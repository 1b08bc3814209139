"""The verbs: prepare, train, evaluate, predict, chat, merge, show. The only folder that joins the layers."""

from lorikeet.api.answering import chat, engine, predict
from lorikeet.api.base import Base, open_base, prepare
from lorikeet.api.inspecting import check, ledger, show
from lorikeet.api.merging import merge
from lorikeet.api.training import evaluate, train

__all__ = [
    "Base",
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
