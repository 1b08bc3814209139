"""A file of prompts in, a file of replies out, the replies a server's: many asked at once, each in its own thread.

Replies are kept as they come, in any order, and written in the prompts' order when all are there. A prediction that
was stopped goes on where it was; what was answered is not asked again.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorikeet.base.errors import ServerError
from lorikeet.base.files import write_file
from lorikeet.base.log import note, progress
from lorikeet.base.nouns import Conversation, Message
from lorikeet.data.templates._contract import Template
from lorikeet.infer.predict import done_line, read_done, with_references
from lorikeet.infer.remote import Answer, Refused, Server
from lorikeet.infer.sampling import GenerateOptions

ENOUGH = 3  # questions that are refused before any other: it is not these questions


def predict_remote(
    server: Server,
    conversations: Sequence[Conversation],
    output: Path,
    options: GenerateOptions,
    *,
    template: Template | None = None,
    concurrency: int = 16,
) -> dict[str, float]:
    """Ask for each conversation's reply and write rows {messages, reply, reference, finish_reason}; returns figures.
    A prompt that the server refuses becomes a row with finish_reason "error" and the reason.

    template: prompts are rendered with it and sent as text. Raises ServerError where the server cannot be asked;
    the same call then goes on."""
    bodies = [server.body(_prompt(one, template), options, i) for i, one in enumerate(conversations)]
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(output.name + ".part")
    identity = hashlib.sha256(json.dumps([server.endpoint, bodies], sort_keys=True).encode()).hexdigest()
    done = with_references(read_done(part, identity), conversations)
    kept = len(done)
    write_file(part, json.dumps({"identity": identity}) + "\n" + "".join(done_line(i, row) for i, row in done.items()))
    asked = _Asked(server, {i: body for i, body in enumerate(bodies) if i not in done}, concurrency)
    first, unkept = set(asked.indices[:ENOUGH]), list[int]()  # refused, while nothing was answered
    answered, start = any(row["finish_reason"] != "error" for row in done.values()), time.monotonic()
    with part.open("a", encoding="utf-8") as file, progress() as bar:
        task = bar.add_task("answering", total=len(bodies), completed=kept)
        for index, found, seconds in asked:
            done[index] = _row(conversations[index], found, seconds)
            unkept.append(index)
            answered = answered or isinstance(found, Answer)
            if answered:
                file.writelines(done_line(i, done[i]) for i in unkept)
                file.flush()
                unkept.clear()
            elif first.issubset(unkept):
                raise ServerError(
                    f"{server.endpoint} refuses the questions",
                    given=done[index]["error"],
                    try_="what it says, or another option",
                )
            bar.advance(task)
    rows = [done[i] for i in range(len(bodies))]
    refused = [row for row in rows if row["finish_reason"] == "error"]
    if refused:
        note(f"{len(refused)} of {len(rows)} prompts were refused, e.g. {refused[0]['error']}")
    seconds = time.monotonic() - start
    figures = _figures(rows, len(rows) - kept, [done[i] for i in asked.indices], seconds)
    shown = [{name: value for name, value in row.items() if name not in ("seconds", "tokens")} for row in rows]
    write_file(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in shown))
    part.unlink()
    return figures


class _Asked:
    """Questions on their way; iterating gives (index, reply or refusal, seconds) as they come back. Threads are
    daemons: one that waits for a server does not keep a stopped command alive."""

    def __init__(self, server: Server, bodies: Mapping[int, Mapping[str, Any]], concurrency: int):
        self.indices, self._server, self._bodies = list(bodies), server, bodies
        self._waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[tuple[int, Answer | Refused | BaseException, float]] = queue.SimpleQueue()
        for index in self.indices:
            self._waiting.put(index)
        self._stop = threading.Event()
        self._threads = min(concurrency, len(self.indices))

    def __iter__(self) -> Any:
        for _ in range(self._threads):
            threading.Thread(target=self._work, daemon=True).start()
        try:
            for _ in self.indices:
                index, found, seconds = self._found.get()
                if not isinstance(found, (Answer, Refused)):
                    raise found
                yield index, found, seconds
        finally:
            self._stop.set()

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                index = self._waiting.get_nowait()
            except queue.Empty:
                return
            start = time.monotonic()
            found: Answer | Refused | BaseException
            try:
                found = self._server.ask(self._bodies[index], sleep=self._pause)
            except Refused as error:  # this one alone
                found = error
            except BaseException as error:  # of any kind: it is raised where the replies are waited for
                found = error
                self._stop.set()  # the others would find the same
            self._found.put((index, found, time.monotonic() - start))

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Refused("nobody waits for the reply any more")  # else it would be asked again at once


def _prompt(conversation: Conversation, template: Template | None) -> str | list[dict[str, Any]]:
    prompt = conversation.prompt()
    if template is None:
        return [_message(message) for message in prompt.messages]
    segments = template.render(prompt, reply=True)
    bos = template.tokenizer.bos_token
    if segments and segments[0].control and segments[0].text == bos:
        segments = segments[1:]  # servers put it before a text themselves
    return "".join(segment.text for segment in segments)


def _message(message: Message) -> dict[str, Any]:
    told: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        told["tool_calls"] = list(message.tool_calls)
    for name in ("name", "tool_call_id"):
        if (value := getattr(message, name)) is not None:
            told[name] = value
    return told


def _row(conversation: Conversation, found: Answer | Refused, seconds: float) -> dict[str, Any]:
    messages = [{"role": message.role, "content": message.content} for message in conversation.prompt().messages]
    row = {"messages": messages, "reply": "", "reference": conversation.reference, "finish_reason": "error"}
    if isinstance(found, Refused):
        return row | {"error": str(found), "seconds": seconds}
    return row | {"reply": found.text, "finish_reason": found.reason, "seconds": seconds, "tokens": found.tokens}


def _figures(
    rows: Sequence[dict[str, Any]], fresh: int, asked: Sequence[dict[str, Any]], seconds: float
) -> dict[str, float]:
    """What to print of this call; tokens only where the server counted all of them."""
    found: dict[str, float] = {"replies": len(rows), "asked_now": fresh, "seconds": seconds}
    answered = [row for row in asked if row["finish_reason"] != "error"]
    if not answered:
        return found
    waited = sorted(row["seconds"] for row in answered)
    found |= {"replies_per_second": fresh / max(seconds, 1e-9), "median_seconds": waited[len(waited) // 2]}
    if all(isinstance(row["tokens"], int) for row in answered):
        found["tokens_per_second"] = sum(row["tokens"] for row in answered) / max(seconds, 1e-9)
    return found
