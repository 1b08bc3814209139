"""GPTQ of experts that saw few tokens: which Hessian is the best for them.

    python benchmarks/gptq_experts.py --model FOLDER --data alpaca_en_demo.json --layers 0 2

The model is a mixture of experts of a native family, trained. For each expert of these layers, and for its first n
calibration tokens: the error of its linears on held-out tokens of its own, beside that of rounding to nearest, rounded
with H of these n tokens, of all tokens through every expert, and of both as models/blockwise_experts.py adds them (with
every token in H_all). Geometric means.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lorikeet import config
from lorikeet.api.base import prepare
from lorikeet.base.nouns import Example
from lorikeet.data.pack import order, pack_row, plan_rows
from lorikeet.models.blockwise_experts import HELP
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.experts import Mixture
from lorikeet.ops.attention import PackedView
from lorikeet.ops.swiglu import swiglu
from lorikeet.quant._gptq_solver import Hessian, SolverOptions, solve
from lorikeet.quant.none import NoQuant

SIZES = (0, 16, 128, 512, 1024, 4096)
WAYS = ("own", "all", "both")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", required=True)
    options.add_argument("--data", required=True)
    options.add_argument("--layers", type=int, nargs="+", default=[0])
    options.add_argument("--bits", type=int, default=4)
    options.add_argument("--group-size", type=int, default=32)
    options.add_argument("--rows", type=int, default=300, help="to calibrate on")
    options.add_argument("--held-out", type=int, default=100)
    given = options.parse_args()
    data = {"train": [given.data], "validation": given.held_out, "max_length": 256}
    recipe = config.parse({"output_dir": "unused", "model": {"path": given.model, "dtype": "float32"}, "data": data})
    recipe, base, _, prepared = prepare(recipe)
    model = base.load(NoQuant())
    first = [prepared.train[int(i)] for i in order(len(prepared.train), recipe.train.seed, 0)[: given.rows]]
    held_out = [prepared.validation[i] for i in range(given.held_out)]
    solver = SolverOptions(bits=given.bits, group_size=given.group_size)
    found: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    mixtures = [module for module in model.modules() if isinstance(module, Mixture)]
    with torch.no_grad():
        for layer in given.layers:
            mixture = mixtures[layer]
            fed, unseen = (_inputs(model, mixture, examples) for examples in (first, held_out))
            for key, value in _measure(mixture, fed, unseen, solver):
                found[key].append(value)
    print("| linear | own tokens | experts | " + " | ".join(WAYS) + " |\n|---|---|---|---|---|---|")
    for part in ("gate_up", "down"):
        for n in SIZES:
            if count := len(found[part, n, "all"]):
                means = [_mean(found[part, n, way]) for way in WAYS]
                print(f"| {part} | {n} | {count} | " + " | ".join(means) + " |")


def _inputs(model: CausalLM, mixture: Mixture, examples: Sequence[Example]) -> Tensor:
    """What goes into the mixture [T, D], normed."""
    given: list[Tensor] = []
    watched = mixture.router.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    for row in plan_rows(examples, row_tokens=2048, share=False):
        batch = pack_row(row, share=False)
        model.hidden(batch.tokens, batch.positions, PackedView(batch.visible_until, batch.positions))
    watched.remove()
    return torch.cat(given)


def _measure(
    mixture: Mixture, fed: Tensor, unseen: Tensor, solver: SolverOptions
) -> Iterator[tuple[tuple[str, int, str], float]]:
    """((linear, own tokens, way), error beside rounding to nearest) of each expert with 100 held-out tokens."""
    routed, tested = mixture.route(fed)[0], mixture.route(unseen)[0]
    for expert in range(mixture.sizes.count):
        own, test = fed[(routed == expert).any(-1)], unseen[(tested == expert).any(-1)]
        if len(test) < 100:
            continue
        gate_up, down = (_weight(group.of_expert(expert)) for group in mixture.expert_groups)

        def inside(x: Tensor, gate_up: Tensor = gate_up) -> Tensor:
            return swiglu(x @ gate_up.T, mixture.activation)

        parts: dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]] = {
            "gate_up": (gate_up, lambda x: x),
            "down": (down, inside),
        }
        for part, (weight, of) in parts.items():
            mine, every, right = of(own), _hessian(of(fed)), _hessian(of(test))
            nearest = solve(weight, torch.eye(weight.shape[1]), solver)  # without correlations GPTQ is that
            for n in SIZES:
                if n > len(own):
                    break
                both = _hessian(mine[:n])
                both.include(every, HELP * weight.shape[1])
                ways = {"all": every, "both": both} | ({"own": _hessian(mine[:n])} if n else {})
                for way, hessian in ways.items():
                    moved = _error(weight, solve(weight, hessian.matrix, solver).dense(), right)
                    yield (part, n, way), moved / _error(weight, nearest.dense(), right)


def _weight(linears: Sequence[torch.nn.Module]) -> Tensor:
    return torch.cat([linear.dense(torch.float32) for linear in linears])  # type: ignore[operator]


def _hessian(x: Tensor) -> Hessian:
    found = Hessian(x.shape[1], x.device)
    found.add(x)
    return found


def _error(weight: Tensor, other: Tensor, hessian: Hessian) -> float:
    gone = weight - other
    return float(((gone @ hessian.matrix) * gone).sum())


def _mean(values: Sequence[float]) -> str:
    return f"{math.exp(sum(map(math.log, values)) / len(values)):.2f}" if values else ""


if __name__ == "__main__":
    main()
