"""How long the rows are, against max_length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lorikeet.data.checks._contract import Check, Finding, Row, Setting
from lorikeet.data.histogram import Histogram


class Lengths(Check):
    """The histogram of the rows' lengths in tokens before anything is cut (in characters without a model)."""

    reason = "Most of a max_length nobody needs is memory for nothing; one that is too short cuts answers."
    fix = "A data.max_length that the histogram suggests."

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self.histogram = Histogram(limit=setting.options.max_length if setting.encoder is not None else None)

    def row(self, row: Row) -> Iterator[Finding]:
        if self.setting.encoder is None:
            self.histogram.add(row.walked.characters())
        else:  # a row laid out once per reply is as long as the longest; of a document's windows each knows the whole
            self.histogram.add(max((piece.whole for piece in row.walked.pieces), default=0))
        return iter(())

    def facts(self) -> dict[str, Any]:
        with_model = self.setting.encoder is not None
        limit = self.setting.options.max_length if with_model else None
        return {"unit": "tokens" if with_model else "characters", "max_length": limit, **self.histogram.as_dict(limit)}
