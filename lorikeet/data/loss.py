"""Which tokens are learned, and how much: a loss weight for every segment of a rendered conversation.

    replies             what the model writes: each reply with the token that ends it
    last_reply          only the last one
    all                 every token
    replies+structure   replies, and the markup of every turn (start and end tokens and the line end behind them, not
                        role names): teaches a base model the markup, as Qwen's own fine-tuning does

A message's own `trained` and `weight` overrule the policy; `role_weights` come between the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from lorikeet.base.nouns import Conversation
from lorikeet.base.options import Options
from lorikeet.data.templates._contract import Segment

Policy = Literal["replies", "last_reply", "all", "replies+structure"]
Role = Literal["system", "user", "assistant", "tool", "text"]


class LossOptions(Options):
    """What is learned; the recipe has these two fields in `data`."""

    loss: Policy = Field("replies", description="What is learned: replies, last_reply, all, or replies+structure.")
    role_weights: Mapping[Role, Annotated[float, Field(ge=0, le=1000)]] = Field(
        default_factory=dict,
        description="Loss weight of a role's messages, e.g. {user: 0.01} to learn the questions a little.",
    )


def message_weights(conversation: Conversation, options: LossOptions) -> list[float]:
    """The loss weight of each message's text and end; 0 where it is not learned."""
    roles = [message.role for message in conversation.messages]
    last = max((index for index, role in enumerate(roles) if role == "assistant"), default=-1)
    weights = []
    for index, message in enumerate(conversation.messages):
        trained = message.role == "text" or options.loss == "all"
        if message.role == "assistant":
            trained = trained or options.loss != "last_reply" or index == last
        weight = 1.0 if trained else 0.0
        # a role's weight brings in roles the policy leaves out, but not the replies that last_reply leaves out
        if message.role in options.role_weights and (trained or message.role != "assistant"):
            weight = options.role_weights[message.role]  # type: ignore[index]
        if message.trained is True and weight == 0:
            weight = options.role_weights.get(message.role, 0) or 1.0  # type: ignore[call-overload]
        if message.weight is not None:
            weight = message.weight
        if message.trained is False:
            weight = 0.0
        weights.append(weight)
    return weights


def trained_replies(conversation: Conversation, options: LossOptions) -> list[int]:
    """Indices of the assistant messages that are learned."""
    weights = message_weights(conversation, options)
    return [
        index
        for index, message in enumerate(conversation.messages)
        if message.role == "assistant" and weights[index] > 0
    ]


def segment_weights(
    conversation: Conversation, segments: Sequence[Segment], options: LossOptions, first: int = 0
) -> list[float]:
    """One weight for each segment, 0 where it is not learned. Messages before `first` are not learned here."""
    messages = message_weights(conversation, options)
    weights = []
    # what an earlier layout of the same conversation already learned ends with the last segment of message first - 1
    skip = max((number for number, segment in enumerate(segments) if _is_before(segment, first)), default=-1)
    for number, segment in enumerate(segments):
        after_end = number > 0 and segments[number - 1].part == "end"
        if segment.message is not None:
            weight = messages[segment.message]
            if options.loss == "replies+structure" and segment.part == "end" and weight == 0:
                weight = _structure_weight(conversation, segment.message)
        elif options.loss == "all" or (
            options.loss == "replies+structure" and (segment.control or (after_end and not segment.text.strip()))
        ):
            weight = 1.0
        else:
            weight = 0.0
        weights.append(0.0 if number <= skip else weight)
    return weights


def _is_before(segment: Segment, first: int) -> bool:
    return segment.message is not None and segment.message < first


def _structure_weight(conversation: Conversation, index: int) -> float:
    """The end of a message the policy leaves out is markup, unless the message says it is not to be learned."""
    return 0.0 if conversation.messages[index].trained is False else 1.0
