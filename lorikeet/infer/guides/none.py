"""No guide: a reply is whatever the model says."""

from __future__ import annotations

from typing import Literal

from lorikeet.infer.guides._contract import Guide


class NoGuide(Guide):
    """Anything goes."""

    kind: Literal["none"] = "none"

    def grammar(self) -> None:
        """See `Guide.grammar`."""
        return
