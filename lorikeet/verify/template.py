"""What a model reads from us against what its own chat template gives it: the same ids, or a reason in words.

Theirs is what transformers' `apply_chat_template` computes: the template rendered to one string, and that string
encoded with every control string in it as a control token. Ours is what training and chat use. They may differ in four
ways, each shown to be that and nothing else:

    BOS              the template leaves it to the tokenizer, which puts it in front
    control strings  in a message's text stay text here: the control tokens are those of the same conversation with
                     harmless words in their place, and the characters are the same
    a reply          begins with a token of its own, where the prompt ends at inference: the string cut there gives ours
    a finished reply stands behind the prompt it is asked with, where the template writes another one before it

Beside that, the prompt of each reply in a training example is, id by id, the prompt of the same reply at inference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jinja2

from lorikeet.base.errors import DataError, TemplateError
from lorikeet.base.nouns import Conversation
from lorikeet.data.encode import encode, encode_conversation
from lorikeet.data.layout import lay_out, prompt_segments
from lorikeet.data.loss import LossOptions
from lorikeet.data.templates._contract import Segment, Template
from lorikeet.data.templates._environment import compile_template, to_json
from lorikeet.tokens._contract import Tokenizer
from lorikeet.tokens.huggingface import HuggingFaceTokenizer
from lorikeet.verify.conversations import adversarial, harmless

FAILED = ("different", "prompt differs")


@dataclass(frozen=True)
class Compared:
    """One conversation, as a prompt or as a finished one."""

    conversation: str
    verdict: str  # same ids | same, with BOS | control strings stay text | reply on its own token | refused | different
    tokens: int = 0
    reason: str = ""
    theirs: str = ""  # around the first difference
    ours: str = ""

    @property
    def failed(self) -> bool:
        return self.verdict in FAILED


class TheirTemplate:
    """A chat template rendered as transformers renders it."""

    def __init__(self, source: str, tokenizer: HuggingFaceTokenizer):
        self.tokenizer = tokenizer
        self._program = compile_template(source, "the chat template")

    def text(self, conversation: Conversation, reply: bool) -> str:
        """Raises jinja2.TemplateError where the template refuses or fails."""
        try:
            return self._program.render(
                messages=[_plain(message) for message in conversation.messages],
                tools=list(conversation.tools) or None,
                documents=None,
                add_generation_prompt=reply,
                **self.tokenizer.names,
            )
        except jinja2.TemplateError:
            raise
        except Exception as error:  # a template is a program of someone else's
            raise jinja2.TemplateError(f"it fails: {error}") from error


def _plain(message: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        told["tool_calls"] = [dict(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        told["tool_call_id"] = message.tool_call_id
    return told


def compare_all(template: Template, theirs: TheirTemplate) -> list[Compared]:
    """Every adversarial conversation, and the prompts within it."""
    control = [name for name in theirs.tokenizer.control if len(name) > 2]
    found = []
    for name, conversation in adversarial(_spread(control, theirs)).items():
        one = compare(name, conversation, template, theirs, control)
        found.append(_prompts(one, conversation, template, theirs.tokenizer) if not one.failed else one)
    return found


def _spread(control: Sequence[str], theirs: TheirTemplate) -> list[str]:
    """Control tokens to try first: those that the template writes itself."""
    try:
        said = theirs.text(adversarial(())["answered"], False)
    except jinja2.TemplateError:
        said = ""
    return sorted(control, key=lambda name: name not in said)


def compare(
    name: str, conversation: Conversation, template: Template, theirs: TheirTemplate, control: Sequence[str]
) -> Compared:
    """The whole of a finished conversation, or the prompt of one that ends with a question."""
    tokenizer = theirs.tokenizer
    reply = conversation.messages[-1].role != "assistant"
    try:
        text, refusal = theirs.text(conversation, reply), ""
    except jinja2.TemplateError as error:
        text, refusal = "", f"the model's template: {error}"
    try:
        segments = _segments(conversation, template, reply)
    except (TemplateError, DataError) as error:
        return Compared(name, "refused", reason=refusal or str(error.what))
    ours, _ = encode(segments, [0.0] * len(segments), tokenizer)
    ids = ours.tolist()
    if refusal:
        return Compared(name, "said here alone", len(ids), refusal)
    expected = tokenizer.encode_marked(text)
    if ids == expected:
        return Compared(name, "same ids", len(ids))
    bos = [tokenizer.control[tokenizer.bos_token]] if tokenizer.bos_token else []
    if expected[: len(bos)] == bos:
        bos = []  # it is there: a second one is a difference
    if bos and ids == bos + expected:
        return Compared(name, "same ids", len(ids), "and BOS, which the template leaves to the tokenizer")
    written = "".join(segment.text for segment in segments)
    if written not in (text, (tokenizer.bos_token or "" if bos else "") + text):
        if not reply and _follows_its_prompt(conversation, template, theirs, text, control):
            return Compared(name, "same ids", len(ids), "of its prompt; the template writes finished replies otherwise")
        return _different(name, tokenizer, text, written, expected, ids)
    if ids[len(ids) - len(_cut(segments, tokenizer)) :] == _cut(segments, tokenizer):
        return Compared(name, "same ids", len(ids), "a reply begins with a token of its own")
    twin = harmless(conversation, control)
    known = set(tokenizer.control.values())
    try:
        wanted = [token for token in tokenizer.encode_marked(theirs.text(twin, reply)) if token in known]
    except jinja2.TemplateError:
        wanted = []
    marks = [token for token in ids if token in known]
    if twin != conversation and marks in (wanted, bos + wanted):
        return Compared(name, "same ids", len(ids), "control strings in messages stay text")
    return _different(name, tokenizer, text, written, expected, ids)


def _follows_its_prompt(
    conversation: Conversation, template: Template, theirs: TheirTemplate, text: str, control: Sequence[str]
) -> bool:
    """Whether the template's rendering of a finished reply does not begin with the prompt it gives for that reply, and
    ours of that prompt is theirs: then the reply is learned behind what it is asked with."""
    asked = Conversation(conversation.messages[:-1], conversation.tools)
    try:
        prompt = theirs.text(asked, True)
    except jinja2.TemplateError:
        return False
    if text.startswith(prompt) or not asked.messages or asked.messages[-1].role == "assistant":
        return not text.startswith(prompt) and bool(asked.messages)
    return compare("", asked, template, theirs, control).verdict == "same ids"


def _segments(conversation: Conversation, template: Template, reply: bool) -> list[Segment]:
    """As training and chat have them: replies marked."""
    if reply:
        return prompt_segments(conversation, template)
    last = len(conversation.messages) - 1
    layouts = lay_out(conversation, template, [last])
    rest = template.render(conversation)
    # behind the last reply a template may write on, which nobody learns and no layout of one reply has
    whole = layouts[-1].segments
    text, full = "".join(one.text for one in whole), "".join(one.text for one in rest)
    if full.startswith(text) and len(full) > len(text):
        behind = full[len(text) :]
        tail: list[Segment] = []
        for segment in reversed(rest):
            if len("".join(one.text for one in tail)) >= len(behind):
                break
            tail.insert(0, segment)
        return [*whole, *tail]
    return whole


def _cut(segments: Sequence[Segment], tokenizer: HuggingFaceTokenizer) -> list[int]:
    """Their ids of the same string, cut where each reply begins."""
    parts, before = [""], None
    for segment in segments:
        if segment.reply and (before is None or not before.reply or before.message != segment.message):
            parts.append("")
        parts[-1] += segment.text
        before = segment
    return [token for part in parts for token in tokenizer.encode_marked(part)]


def _prompts(
    one: Compared, conversation: Conversation, template: Template, tokenizer: HuggingFaceTokenizer
) -> Compared:
    """`one`, or what differs between the prompts in training and those at inference."""
    fault = prompt_fault(conversation, template, tokenizer)
    return one if fault is None else Compared(one.conversation, "prompt differs", one.tokens, *fault)


def prompt_fault(conversation: Conversation, template: Template, tokenizer: Tokenizer) -> tuple[str, str, str] | None:
    """(what, at inference, in training) of the first reply whose prompt in the training example is not, id by id, the
    prompt that inference builds for it; None where all are the same, or where nothing of it is trained."""
    try:
        encoded = encode_conversation(conversation, template, tokenizer, LossOptions())
    except (TemplateError, DataError):
        return None
    for index, message in enumerate(conversation.messages):
        if message.role != "assistant":
            continue
        try:
            asked = prompt_segments(Conversation(conversation.messages[:index], conversation.tools), template)
        except TemplateError:
            continue  # inference refuses to ask for it
        prompt = encode(asked, [0.0] * len(asked), tokenizer)[0].tolist()
        examples = [ids.tolist() for layout, ids, _ in encoded if layout.first <= index < _end(layout.conversation)]
        if not any(ids[: len(prompt)] == prompt for ids in examples):
            shown = tokenizer.decode(examples[0][: len(prompt)] if examples else [], skip_control=False)
            said = tokenizer.decode(prompt, skip_control=False)
            return f"the prompt of message {index}", said[-80:], shown[-80:]
    return None


def _end(conversation: Conversation) -> int:
    return len(conversation.messages)


def _different(
    name: str, tokenizer: HuggingFaceTokenizer, text: str, written: str, expected: list[int], ids: list[int]
) -> Compared:
    """Both sides around the first place where they part."""
    if text != written:
        at = next((i for i, pair in enumerate(zip(text, written)) if pair[0] != pair[1]), min(len(text), len(written)))
        start = max(0, at - 24)
        sides = text[start : at + 40], written[start : at + 40]
        return Compared(name, "different", len(ids), f"at character {at}", *(to_json(side) for side in sides))
    at = next((i for i, pair in enumerate(zip(expected, ids)) if pair[0] != pair[1]), min(len(expected), len(ids)))
    shown = [_shown(tokenizer, side[max(0, at - 3) : at + 5]) for side in (expected, ids)]
    return Compared(name, "different", len(ids), f"at token {at}", *shown)


def _shown(tokenizer: HuggingFaceTokenizer, ids: Sequence[int]) -> str:
    return " ".join(f"{token}:{to_json(tokenizer.decode([token], skip_control=False))}" for token in ids)


def table(found: Sequence[Compared]) -> list[str]:
    """One line a conversation, and both sides of those that differ."""
    width = max(len(one.conversation) for one in found)
    lines = [f"{'conversation':<{width}}  {'tokens':>6}  verdict"]
    for one in found:
        reason = f": {one.reason}" if one.reason else ""
        tokens = str(one.tokens) if one.tokens else "-"
        lines.append(f"{one.conversation:<{width}}  {tokens:>6}  {one.verdict}{reason[:150]}")
        if one.failed:
            lines += [f"{'':<{width}}          theirs  {one.theirs}", f"{'':<{width}}          ours    {one.ours}"]
    return lines


def counts(found: Sequence[Compared]) -> Mapping[str, int]:
    """How many of each verdict."""
    return {
        verdict: sum(one.verdict == verdict for one in found) for verdict in dict.fromkeys(o.verdict for o in found)
    }


def as_rows(found: Sequence[Compared]) -> list[dict[str, Any]]:
    """For the certificate."""
    return [{key: value for key, value in asdict(one).items() if value != ""} for one in found]
