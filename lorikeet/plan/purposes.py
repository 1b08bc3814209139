"""What a person wants the model to do, and what that changes in a recipe. Four that differ; nobody needs twenty."""

from __future__ import annotations

from dataclasses import dataclass

from lorikeet.base.errors import RecipeError, nearest
from lorikeet.plan.look import Look


@dataclass(frozen=True)
class Purpose:
    """What one purpose sets."""

    name: str
    what: str  # a few words, for people
    r: int
    why_r: str
    learning_rate: float  # for models of one to four billion parameters
    extra_epochs: int
    loss: str
    why_loss: str
    temperature: float
    why_temperature: str


PURPOSES = {
    purpose.name: purpose
    for purpose in (
        Purpose("chat", "conversations of several turns", 16, "room for a manner of speaking", 2e-4, 0,
                "replies", "what the assistant says, in every turn", 0.7, "a conversation may vary"),
        Purpose("instruct", "a reply to one request", 16, "room for many kinds of requests", 2e-4, 0,
                "replies", "what the assistant says, not questions", 0.0, "the likeliest reply, the same each time"),
        Purpose("extract", "short exact replies: fields, labels, JSON", 16, "a narrow task needs no more", 4e-4, 1,
                "replies", "the exact reply, not the text it comes from", 0.0, "an exact answer has no second choice"),
        Purpose("text", "the style or the knowledge of texts", 32, "new knowledge needs more room", 1e-4, 0,
                "all", "every token: the text is what is learned", 0.8, "prose of likeliest words repeats itself"),
    )
}  # fmt: skip
SHORT_REPLY = 48  # tokens: most replies below this are answers, not prose


def named(name: str) -> Purpose:
    """The purpose of that name. Raises RecipeError for another word."""
    if name not in PURPOSES:
        allowed = "; ".join(f"{purpose.name}: {purpose.what}" for purpose in PURPOSES.values())
        near = nearest(name, PURPOSES)
        raise RecipeError(
            f"--purpose: there is no '{name}'", given=name, allowed=allowed, try_=f"--purpose {near or 'instruct'}"
        )
    return PURPOSES[name]


def suggest(found: Look) -> Purpose:
    """The purpose that the data look like."""
    if found.documents:
        return PURPOSES["text"]
    median = sorted(found.reply_lengths.tolist())[len(found.reply_lengths) // 2] if len(found.reply_lengths) else 0
    if found.json_share > 0.5:
        return PURPOSES["extract"]
    if 5 * found.rows.turns > found.rows.read:
        return PURPOSES["chat"]
    return PURPOSES["extract" if median <= SHORT_REPLY // 4 else "instruct"]


def check(purpose: Purpose, found: Look) -> None:
    """Raise RecipeError where the data cannot serve the purpose."""
    if found.documents and purpose.name != "text":
        raise RecipeError(
            f"--purpose: {purpose.name} needs replies, and these data are texts without any",
            given=f"{purpose.name}; {found.rows.documents} of {found.rows.read} rows are plain text",
            allowed="text",
            try_="--purpose text, or data with questions and replies",
        )
