"""BOS: once at the start, and again only where a turn begins anew."""

from __future__ import annotations

from collections.abc import Iterator

from lorikeet.data.checks._contract import Check, Finding, Row, Setting


class Bos(Check):
    """BOS is missing at the start, stands there twice, or stands in the middle of a turn."""

    level = "error"
    reason = "A model reads texts without BOS, or with two, worse than those it was trained on."
    fix = "A template that writes BOS once or not at all (it is added); no BOS inside the rows' texts."
    needs_model = True

    def __init__(self, setting: Setting):
        super().__init__(setting)
        assert setting.encoder is not None
        tokenizer = setting.encoder.tokenizer
        self._name = tokenizer.bos_token or ""
        self._bos = tokenizer.control.get(self._name)
        self._ends = {*tokenizer.eos_ids, *setting.encoder.template.stop_ids}

    def row(self, row: Row) -> Iterator[Finding]:
        if self._bos is None:
            return
        for piece in row.kept:
            tokens = piece.tokens.tolist()
            if tokens[0] != self._bos:
                yield row.found(f"{self._name} is missing at the start")
            places = [place for place in range(1, len(tokens)) if tokens[place] == self._bos]
            if 1 in places and tokens[0] == self._bos:
                yield row.found(f"{self._name} stands twice at the start")
            # Llama 2's turns each begin with it, behind the EOS of the one before
            inside = [place for place in places if place > 1 and tokens[place - 1] not in self._ends]
            if inside and self._bos not in self._ends:
                yield row.found(f"{self._name} stands inside a turn, at token {inside[0]}")
