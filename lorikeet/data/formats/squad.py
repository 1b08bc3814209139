"""SQuAD's questions on a passage, versions 1 and 2: a row a question, or a row a passage with all its questions.

The passage stands before the first question; further questions on it are further turns. A question that the passage
does not answer is left out, or answered with `no_answer`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from lorikeet.base.errors import DataError
from lorikeet.base.nouns import Conversation, Message, Origin
from lorikeet.data.files import Advance
from lorikeet.data.formats import _row
from lorikeet.data.formats._contract import Format
from lorikeet.data.formats.dolly import refuse


class Squad(Format):
    """`context`, `question`, `answers` as the hub has them, or `paragraphs` as the original file has them."""

    kind: Literal["squad"] = Field("squad", description="Questions on a passage: SQuAD 1 and 2.")
    no_answer: str | None = Field(None, description="The reply where the passage has no answer; null leaves it out.")
    expects: ClassVar[str] = "context question answers; or context qas, as in the original file"
    columns: ClassVar[tuple[str, ...]] = (
        "id",
        "title",
        "context",
        "question",
        "answers",
        "qas",
        "is_impossible",
        "plausible_answers",
    )
    precedence: ClassVar[int] = 3

    def recognises(self, row: dict[str, Any]) -> bool:
        return (
            {"context", "question", "answers"} <= row.keys()
            or {"context", "qas"} <= row.keys()
            or ("paragraphs" in row)
        )

    def rows(self, file: str, advance: Advance | None = None) -> Iterator[tuple[dict[str, Any], Origin]]:
        """The original file is a list of articles; each of its passages is a row here."""
        number = 0
        for row, origin in super().rows(file, advance):
            passages = row["paragraphs"] if isinstance(row.get("paragraphs"), list) else [row]
            for passage in passages:
                if not isinstance(passage, dict):
                    raise DataError(f"{origin}: a passage is no object", given=repr(passage)[:80], allowed=self.expects)
                yield passage, Origin(origin.file, number, origin.line)
                number += 1

    def read(self, row: dict[str, Any], origin: Origin, *, reply: bool = True) -> Conversation:
        passage = _row.text(row, "context", origin) if "context" in row else ""
        if "context" not in row or not ("question" in row or "qas" in row):
            _row.wrong_columns(row, "context" if "context" not in row else "question", origin, self.expects)
        listed = row.get("qas", [row])
        if not isinstance(listed, list) or not all(isinstance(one, Mapping) for one in listed):
            raise DataError(f"{origin}: column 'qas' is no list", given=repr(listed)[:80], allowed=self.expects)
        messages: list[Message] = []
        for number, one in enumerate(listed):
            question = _row.checked(one.get("question"), f"question {number}", origin)
            answer = self._answer(one, number, origin) if reply else None
            if reply and answer is None:
                continue
            messages.append(Message("user", question if messages else f"{passage}\n\n{question}"))
            if answer is not None:
                messages.append(Message("assistant", answer))
        if not messages:
            refuse(origin, "no question that the passage answers", f"{len(listed)} questions", "data.format.no_answer")
        return _row.conversation(messages, origin, reply=reply)

    def _answer(self, one: Mapping[str, Any], number: int, origin: Origin) -> str | None:
        """The first answer, or `no_answer` where there is none."""
        answers = one.get("answers")
        found = answers.get("text") if isinstance(answers, Mapping) else answers
        if not isinstance(found, list):
            raise DataError(
                f"{origin}: question {number} has no list of answers",
                given=repr(answers)[:80],
                allowed='{"text": ["..."]} or [{"text": "..."}]',
            )
        if not found or one.get("is_impossible"):
            return self.no_answer
        first = found[0]
        return _row.checked(first.get("text") if isinstance(first, Mapping) else first, f"answer {number}", origin)
