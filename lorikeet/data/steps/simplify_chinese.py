"""Traditional Chinese characters to simplified ones, by OpenCC's phrases, in Chinese text alone.

Japanese and Korean write with the same characters and must not be touched: FastChat's fork converts every turn, and
makes 学 of a Japanese 學. A conversation counts as Chinese where its Han characters are many times its kana and hangul;
a line of it that has kana or hangul, a quotation, stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Literal

from pydantic import Field

from lorikeet.base.extras import require
from lorikeet.data.steps._contract import Log, Step
from lorikeet.data.steps._record import Record

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ebef]")
# without the middle dot (30fb), which stands in Chinese texts between the parts of foreign names
_OTHER = re.compile(r"[\u3040-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9d\u1100-\u11ff\uac00-\ud7af]")
_LEAST = 4  # Han characters for each of another script


class SimplifyChinese(Step):
    """Chinese conversations in simplified characters."""

    kind: Literal["simplify_chinese"] = "simplify_chinese"
    conversion: Literal["t2s", "tw2s", "tw2sp", "hk2s"] = Field(
        "t2s",
        description="OpenCC's name for it: t2s (characters), tw2s and hk2s (of Taiwan, Hong Kong), tw2sp (words too).",
    )

    def start(self) -> None:
        assert self._converter

    @cached_property
    def _converter(self) -> Any:
        return require("opencc", extra="data", needed_by="the step simplify_chinese").OpenCC(self.conversion)

    def each(self, record: Record, log: Log) -> Iterable[Record]:
        texts = record.texts()
        foreign = not all(text.isascii() for text in texts)
        if foreign and is_chinese(texts) and sum([turn.apply(self._simplified) for turn in record.turns]):
            log.change(record, "traditional to simplified")
        return [record]

    def _simplified(self, text: str) -> str:
        if text.isascii():
            return text
        if not _OTHER.search(text):
            converted: str = self._converter.convert(text)
            return converted
        lines = text.split("\n")
        return "\n".join(line if _OTHER.search(line) else self._converter.convert(line) for line in lines)


def is_chinese(texts: Iterable[str]) -> bool:
    """Whether a conversation's Han characters are Chinese."""
    whole = "\n".join(texts)
    han = len(_HAN.findall(whole))
    return han > 0 and han >= _LEAST * len(_OTHER.findall(whole))
