"""GPTQ here against gptqmodel: the same model, the same calibration rows, held-out loss of both, and who reads whose.

    python benchmarks/gptq_quality.py --data alpaca_en_demo.json --peer /path/to/venv/bin/python

The peer's environment needs gptqmodel and optimum (and a torch that they accept); without --peer only this program is
measured. 32 conversations calibrate, 64 others measure. All losses are computed here, of every folder in the same way.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lorikeet import config
from lorikeet.api.base import Base, base_of, prepare
from lorikeet.api.quantizing import quantize
from lorikeet.checkpoints import hf
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.data.pack import order, pack_row, plan_rows
from lorikeet.data.pipeline import Prepared
from lorikeet.models.causal_lm import CausalLM
from lorikeet.ops.attention import PackedView
from lorikeet.quant._contract import Quant
from lorikeet.quant._gptq_solver import SolverOptions
from lorikeet.quant.gptq import Gptq
from lorikeet.quant.none import NoQuant
from lorikeet.train.evaluate import evaluate

RUNNER = Path(__file__).parent / "runners" / "gptqmodel_run.py"
CALIBRATION, HELD_OUT = 32, 64


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", default="smollm2-135m")
    options.add_argument("--data", required=True)
    options.add_argument("--peer", help="the Python of an environment with gptqmodel")
    options.add_argument("--group-sizes", type=int, nargs="+", default=[128, 64])
    options.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="of solving")
    options.add_argument("--work", type=Path, help="keeps the folders here, and uses those that are there")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rows = list(_measure(given, given.work or Path(temporary)))
    print("| what | bits a weight | held-out loss | perplexity | / gptqmodel's |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['what']} | {row['bits']:.2f} | {row['loss']:.4f} | {math.exp(row['loss']):.3f} | {row['beside']} |"
        )


def _measure(given: argparse.Namespace, work: Path) -> Iterator[dict[str, Any]]:
    work.mkdir(parents=True, exist_ok=True)
    said = {"train": [given.data], "max_examples": CALIBRATION + HELD_OUT, "validation": HELD_OUT}
    recipe = config.parse({"output_dir": "unused", "model": {"path": given.model}, "data": said})
    recipe, base, _, prepared = prepare(recipe)
    dense = work / "dense"
    model = base.load(NoQuant())
    if not dense.exists():
        _save(model, base, dense)
    chosen = [prepared.train[int(i)].tokens.tolist() for i in order(len(prepared.train), recipe.train.seed, 0)]
    (work / "rows.json").write_text(json.dumps(chosen[:CALIBRATION]))
    yield {"what": str(model.dtype).split(".")[-1], "bits": 16.0, "loss": _loss(model, prepared), "beside": ""}
    del model
    for size in given.group_sizes:
        nearest = Gptq(bits=4, group_size=size)
        yield _row(f"nearest, group {size}", base.load(nearest), prepared, None)
        peer_loss = None
        if given.peer:
            folder = work / f"gptqmodel-{size}"
            if not folder.exists():
                print(_peer(given.peer, "quantise", dense, work / "rows.json", folder, size), file=sys.stderr)
            row = _row(f"gptqmodel, group {size}", _load(folder, base), prepared, None)
            peer_loss = row["loss"]
            yield row
        for name in given.ways:
            folder = work / f"ours-{size}-{name}"
            if not folder.exists():
                quantize(recipe, folder, SolverOptions(group_size=size, **WAYS[name]), rows=CALIBRATION)
            yield _row(f"lorikeet {name}, group {size}", _load(folder, base), prepared, peer_loss)
            if given.peer:
                for reader in ("gptqmodel", "transformers"):
                    print(
                        f"{folder.name} in {reader}: {_compare(given.peer, folder, work, base, reader)}",
                        file=sys.stderr,
                    )


WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "without order": {"desc_act": False},
    "act-order": {"static_groups": False},
    "mse": {"mse": True},
}


def _row(what: str, model: CausalLM, prepared: Prepared, peer_loss: float | None) -> dict[str, Any]:
    loss = _loss(model, prepared)
    beside = "" if peer_loss is None else f"{math.exp(loss - peer_loss):.4f}"
    return {"what": what, "bits": _bits(model), "loss": loss, "beside": beside}


def _bits(model: CausalLM) -> float:
    """Bits a weight of the linears, as kept in memory."""
    kept = [tensor for group in model.groups() for tensor in group.weight.state_dict().values()]
    weights = sum(group.weight.out_features * group.weight.in_features for group in model.groups())
    return 8 * sum(tensor.numel() * tensor.element_size() for tensor in kept) / weights


def _loss(model: CausalLM, prepared: Prepared) -> float:
    assert prepared.validation is not None
    return evaluate(model, [pack_row(row) for row in plan_rows(list(prepared.validation), row_tokens=2048)]).loss


def _load(folder: Path, base: Base, quant: Quant | None = None) -> CausalLM:
    return base_of(base.options, folder, open_checkpoint(folder)).load(quant or NoQuant())


def _save(model: CausalLM, base: Base, folder: Path) -> None:
    folder.mkdir()
    hf.save(folder, model.shape.config | {"dtype": str(model.dtype).split(".")[-1]}, model.tensors())
    base.tokenizer.save(folder)


def _peer(python: str, *arguments: object) -> str:
    """Run the runner with the peer's Python; its last line."""
    environment = os.environ | {"GPTQMODEL_CPU_WORKERS": "2", "CUDA_VISIBLE_DEVICES": ""}
    command = [python, str(RUNNER), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return done.stdout.strip().splitlines()[-1]


def _compare(python: str, folder: Path, work: Path, base: Base, reader: str) -> str:
    """Our last logits of some rows beside another program's, of the same folder."""
    rows = [ids[:200] for ids in json.loads((work / "rows.json").read_text())[:8]]
    (work / "prompts.json").write_text(json.dumps(rows))
    out = work / "logits.safetensors"
    read_by = json.loads(_peer(python, "logits", folder, work / "prompts.json", out, reader))["class"]
    theirs, model, worst, same = load_file(out), _load(folder, base), 0.0, 0
    for i, ids in enumerate(rows):
        positions = torch.arange(len(ids))
        view = PackedView(torch.full((len(ids),), len(ids), dtype=torch.int32), positions)
        with torch.no_grad():
            ours = model.head.logits(model.hidden(torch.tensor(ids), positions, view)[-1:])[0].float()
        p, q = ours.log_softmax(-1), theirs[str(i)].log_softmax(-1)
        worst, same = max(worst, float((p.exp() * (p - q)).sum())), same + int(p.argmax() == q.argmax())
    return f"{read_by}; largest KL {worst:.2e}; same most likely token {same} of {len(rows)}"


if __name__ == "__main__":
    main()
