"""The limits that a merged folder has to keep where none are given, from what it says of how it was made."""

from __future__ import annotations

from typing import Any

import pytest

from lorikeet.verify.limits import NEAR, OTHER, SAME, Limits, default_limits

NONE, INT8, NF4 = ({"kind": kind} for kind in ("none", "int8", "nf4"))
GPTQ = {"kind": "gptq", "bits": 4}
WAYS: list[tuple[dict[str, Any], Limits]] = [
    ({"trained": NF4, "into": NONE, "base": "quantised"}, SAME),
    ({"trained": NF4, "into": NONE, "base": "full"}, OTHER),
    ({"trained": INT8, "into": NONE, "base": "full"}, NEAR),
    ({"trained": NONE, "into": NONE, "base": "full"}, NEAR),
    ({"trained": NF4, "into": INT8, "base": "quantised"}, NEAR),
    ({"trained": NF4, "into": INT8, "base": "full"}, OTHER),
    ({"trained": NONE, "into": GPTQ | {"bits": 8}, "base": "quantised"}, NEAR),
    ({"trained": NONE, "into": GPTQ, "base": "quantised"}, OTHER),
    # four bits are four bits, whichever base they round
    ({"trained": NONE, "into": NF4, "base": "full"}, OTHER),
    ({"trained": INT8, "into": GPTQ, "base": "full"}, OTHER),
    # beside its base, an adapter is what was trained as far as the base is
    ({"trained": NF4, "into": NF4, "base": "quantised", "kept": True}, SAME),
    ({"trained": NF4, "into": NONE, "base": "quantised", "kept": True}, SAME),
    ({"trained": NF4, "into": NONE, "base": "full", "kept": True}, OTHER),
    ({"trained": NONE, "into": INT8, "base": "quantised", "kept": True}, NEAR),
    ({"trained": NONE, "into": NF4, "base": "quantised", "kept": True}, OTHER),
    ({"into": NONE, "base": "quantised"}, SAME),  # merged by another program
]


@pytest.mark.parametrize("how, limits", WAYS, ids=[" ".join(map(str, how.values())) for how, _ in WAYS])
def test_the_limits_of_each_way(how: dict[str, Any], limits: Limits) -> None:
    assert default_limits(how) is limits
