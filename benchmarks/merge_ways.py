"""Every way to merge one run, measured against what was trained: a table of KL, agreement, loss and size.

    python benchmarks/merge_ways.py RUN [--conversations 100] [--prompts 50] [--tokens 64] [--ways fp4 beside]

RUN is a run with held-out conversations. The folders are written beside it, and deleted. `--ways` takes the ways whose
names contain one of these.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from lorikeet import api
from lorikeet.api import verifying
from lorikeet.api.answering import locate
from lorikeet.quant.fp4 import FP4
from lorikeet.quant.gptq import Gptq
from lorikeet.quant.int8 import Int8
from lorikeet.quant.nf4 import NF4

GPTQ = Gptq(group_size=64)
WAYS: list[tuple[str, dict[str, Any]]] = [
    ("dense, of the quantised base", {}),
    ("dense, of the full base", {"base": "full"}),
    *((f"{kind}, of the quantised base", {"into": quant}) for kind, quant in [("int8", Int8()), ("nf4", NF4())]),
    ("int8, of the full base", {"into": Int8(), "base": "full"}),
    ("nf4, of the full base", {"into": NF4(), "base": "full"}),
    ("fp4, of the quantised base", {"into": FP4()}),
    ("fp4, of the full base", {"into": FP4(), "base": "full"}),
    ("gptq 4 bits group 64, calibrated, of the quantised base", {"into": GPTQ}),
    ("gptq 4 bits group 64, calibrated, of the full base", {"into": GPTQ, "base": "full"}),
    ("adapter beside its base", {"keep_adapter": True}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    for name, default in (("conversations", 100), ("prompts", 50), ("tokens", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ways", nargs="+", default=[""])
    given = parser.parse_args()
    ways = [(name, way) for name, way in WAYS if any(part in name for part in given.ways)]
    if not ways:
        parser.error(f"--ways: none of the ways is called so; they are: {'; '.join(name for name, _ in WAYS)}")
    asked = verifying.Asked(given.conversations, given.prompts, given.tokens)
    trained = verifying.settled(locate(given.run))
    template = trained.template.bind(trained.base.tokenizer)
    examples, questions, _ = verifying.examples_of(trained, template, [], asked)
    print("| way | mean KL | largest KL | same top token | loss | increase | same replies | MB |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    for name, way in ways:
        folder = given.run.with_name(f"{given.run.name}-merged")
        made = api.merge(given.run, folder, verify=False, **way)
        other = locate(folder, verifying.as_trained(trained))
        found = verifying.measure(trained, other, template, examples, questions, asked)
        shutil.rmtree(folder)
        replies = "-" if found.same_replies is None else f"{found.same_replies:.0%}"
        divergence = f"{found.mean_kl:.2g} | {found.max_kl:.2g} | {found.top1_agreement:.1%}"
        loss = f"{found.loss_merged:.3f} | {found.loss_increase:+.3f}"
        print(f"| {name} | {divergence} | {loss} | {replies} | {made['bytes'] / 1e6:.0f} |", flush=True)
    print(f"\ntrained: loss {found.loss_trained:.3f}, {found.trained_tokens} tokens, {found.prompts} prompts")


if __name__ == "__main__":
    main()
