"""A file of prompts in, a file of replies out, with the references beside them.

Replies are written as they finish, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorikeet.base.errors import DataError, OutputError
from lorikeet.base.files import need_space, write_file
from lorikeet.base.log import progress
from lorikeet.base.nouns import Conversation
from lorikeet.infer.engine import Engine, Event, Request
from lorikeet.infer.logprobs import TokenLogprob
from lorikeet.infer.sampling import GenerateOptions


def predict(
    engine: Engine, conversations: Sequence[Conversation], output: Path, options: GenerateOptions
) -> list[dict[str, Any]]:
    """Answer each conversation's prompt; returns and writes rows {messages, reply, reference, finish_reason}, and
    logprobs where the options ask for them.

    What is already in `OUTPUT.part` is not done again, if it was made for the same prompts and options."""
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(output.name + ".part")
    prompts = [conversation.prompt() for conversation in conversations]
    for prompt in prompts:
        _fits(engine, prompt)
    identity = _identity(engine, prompts, options)
    done = with_references(read_done(part, identity), conversations)
    # written anew, so that a row which a crash cut short does not swallow the next one
    write_file(part, json.dumps({"identity": identity}) + "\n" + "".join(done_line(i, row) for i, row in done.items()))
    open_ = [i for i in range(len(prompts)) if i not in done]
    with part.open("a", encoding="utf-8") as file, progress() as bar:
        task = bar.add_task("answering", total=len(prompts), completed=len(done))
        texts: dict[int, list[Event]] = {}
        # by its place in the file a prompt is told apart, so that a reply that is drawn is the same after a restart
        for event in engine.generate([Request(i, engine.prompt(prompts[i]), options) for i in open_]):
            texts.setdefault(event.name, []).append(event)
            if event.reason is not None:
                done[event.name] = _row(conversations[event.name], texts.pop(event.name))
                file.write(done_line(event.name, done[event.name]))
                file.flush()
                bar.advance(task)
    rows = [done[i] for i in range(len(prompts))]
    write_file(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    part.unlink()
    return rows


def with_references(
    done: dict[int, dict[str, Any]], conversations: Sequence[Conversation]
) -> dict[int, dict[str, Any]]:
    """Rows that were made before, beside the references as they are now."""
    return {i: row | {"reference": conversations[i].reference} for i, row in done.items()}


def check_output(output: Path, inputs: Sequence[Path | str]) -> None:
    """Raise OutputError for an output that cannot or must not be written, before a model is loaded."""
    if output.is_dir():
        raise OutputError(f"{output} is a folder", given=str(output), allowed="a file name, e.g. replies.jsonl")
    if any(output.resolve() == Path(file).resolve() for file in inputs):
        raise OutputError(f"{output} is one of the files of prompts", given=str(output), try_="--output replies.jsonl")
    if not _replaceable(output):
        raise OutputError(
            f"{output} exists and holds no replies",
            given=str(output),
            allowed="a new file, or one with earlier replies, which is replaced",
            try_="another --output",
        )
    need_space(output.parent, 1 << 20, "the replies")


def _replaceable(output: Path) -> bool:
    """Whether nothing is lost with a file: there is none, or nothing in it but replies of before."""
    if not output.is_file():  # /dev/stdout
        return True
    with output.open("rb") as file:
        first = file.readline()
    try:
        row = json.loads(first) if first else {"reply": ""}
    except ValueError:
        return False
    return isinstance(row, dict) and "reply" in row


def _fits(engine: Engine, prompt: Conversation) -> None:
    """Raise DataError, before anything is written, for a prompt that leaves no room for a reply."""
    length, room = len(engine.prompt(prompt)), engine.model.shape.max_position
    if length >= room:
        raise DataError(
            f"{prompt.origin}: the prompt fills the model's context",
            given=f"{length} tokens",
            allowed=f"fewer than {room} tokens",
            try_="a shorter prompt",
        )


def _row(conversation: Conversation, events: Sequence[Event]) -> dict[str, Any]:
    messages = [{"role": message.role, "content": message.content} for message in conversation.prompt().messages]
    reply, found = "".join(event.text for event in events), [one for event in events for one in event.logprobs]
    row = {
        "messages": messages,
        "reply": reply,
        "reference": conversation.reference,
        "finish_reason": events[-1].reason,
    }
    return row | ({"logprobs": [_likely(one) for one in found]} if found else {})


def _likely(one: TokenLogprob) -> dict[str, Any]:
    return {"token": one.text, "logprob": one.logprob, "top": {other.text: other.logprob for other in one.top}}


def done_line(index: int, row: dict[str, Any]) -> str:
    """A finished row in a file that is gone on with."""
    return json.dumps({"index": index, "row": row}, ensure_ascii=False) + "\n"


def _identity(engine: Engine, prompts: Sequence[Conversation], options: GenerateOptions) -> str:
    digest = hashlib.sha256(options.model_dump_json(exclude={"batch_size", "dequantize"}).encode())
    digest.update(f"{engine.identity} {engine.tokenizer.fingerprint} {engine.template.fingerprint}".encode())
    for prompt in prompts:
        digest.update(repr((prompt.messages, prompt.tools)).encode())
    return digest.hexdigest()


def read_done(part: Path, identity: str) -> dict[int, dict[str, Any]]:
    """The finished rows by index; none where the file was begun for something else."""
    if not part.exists():
        return {}
    done: dict[int, dict[str, Any]] = {}
    text = part.read_bytes().decode(errors="replace")  # a line that was cut short may end inside a character
    for number, line in enumerate(text.split("\n")):  # splitlines also cuts inside a text
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break  # a crash cut this line short
        if number == 0:
            if row.get("identity") != identity:
                return {}
        else:
            done[row["index"]] = row["row"]
    return done
