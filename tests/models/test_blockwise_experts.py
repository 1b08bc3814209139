"""Experts rounded by GPTQ: better than rounding to nearest on tokens they never saw, also those that saw few; the
Hessians one after the other."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lorikeet.models import blockwise_experts
from lorikeet.models.blockwise_experts import round_experts
from lorikeet.models.build import Build
from lorikeet.models.experts import ExpertNames, ExpertSizes, Mixture
from lorikeet.models.linear import FrozenLinear, LinearGroup
from lorikeet.ops.swiglu import swiglu
from lorikeet.quant._gptq_round import round_to_nearest
from lorikeet.quant._gptq_solver import Hessian, SolverOptions, solve
from lorikeet.quant.none import NoQuant

EXPERTS, CHOSEN, WIDTH, INSIDE, GROUP = 6, 2, 48, 32, 16
OPTIONS = SolverOptions(group_size=GROUP)
RARE = 5  # the expert that few tokens reach


def mixture() -> Mixture:
    """Random experts behind a router that looks for kinds of tokens, see `tokens`."""
    sizes = ExpertSizes(EXPERTS, CHOSEN, INSIDE, normalised=True)
    build = Build(NoQuant(), torch.float32, torch.device("cpu"))
    made = Mixture(build, "model.layers.0", ExpertNames(), sizes, WIDTH)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
        made.router.weight.write(0, 3 * _centres() / WIDTH**0.5)
    return made


def _centres() -> Tensor:
    return torch.randn(EXPERTS, WIDTH, generator=torch.Generator().manual_seed(1))


def tokens(count: int, seed: int, *, rare: float) -> Tensor:
    """[count, D], as in networks: a few directions are large in all of them, and each is near a kind's centre. A share
    `rare` of them is of the kind that the last expert is for."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(2))
    sizes = torch.linspace(1, -3, WIDTH).exp()
    common = torch.randn(count, WIDTH, generator=generator) * sizes @ mixing / WIDTH**0.5
    kind = torch.randint(0, EXPERTS - 1, (count,), generator=generator)
    kind[torch.rand(count, generator=generator) < rare] = RARE
    return common + _centres()[kind]


class Rounding:
    """What `round_experts` asks to be done, and what it came to."""

    def __init__(self) -> None:
        self.told: dict[tuple[str, int], dict[str, object]] = {}

    def __call__(self, group: LinearGroup, linears: Sequence[FrozenLinear], hessian: Hessian, **told: object) -> None:
        start, stop = linears[0].rows.start, linears[-1].rows.stop
        solved = solve(group.weight.rows(start, stop, torch.float32), hessian.matrix, OPTIONS)
        group.weight.write(start, solved.dense())
        self.told[linears[-1].name.rsplit(".", 1)[-1], int(str(told["expert"]))] = told


def errors(rounded: Mixture, x: Tensor) -> list[float]:
    """How far each expert's output moved on its own tokens of x, relative."""
    plain, found = mixture(), []
    chosen = plain.route(x)[0]
    for expert in range(EXPERTS):
        mine = x[(chosen == expert).any(-1)]
        (y, other) = (_expert(which, expert, mine) for which in (plain, rounded))
        found.append(float((y - other).square().sum() / y.square().sum()))
    return found


def _expert(which: Mixture, expert: int, x: Tensor) -> Tensor:
    gate_up, down = (
        torch.cat([linear.dense(torch.float32) for linear in group.of_expert(expert)]) for group in which.expert_groups
    )
    return swiglu(x @ gate_up.T, "silu") @ down.T


def nearest() -> Mixture:
    made = mixture()
    for group in made.expert_groups:
        weight = group.weight.dense(torch.float32)
        codes, zeros, scales = round_to_nearest(weight, 4, GROUP, sym=True)
        each = torch.arange(weight.shape[1]) // GROUP
        group.weight.write(0, (codes.float() - zeros.float()[:, each]) * scales.float()[:, each])
    return made


@pytest.mark.parametrize("sequential", [True, False])
def test_every_expert_beats_rounding_to_nearest_on_tokens_it_never_saw(sequential: bool) -> None:
    made, done = mixture(), Rounding()
    fed = list(tokens(4000, 3, rare=0.2).split(700))
    round_experts(made, fed, done, sequential=sequential)
    held_out = tokens(4000, 4, rare=0.2)
    for ours, theirs in zip(errors(made, held_out), errors(nearest(), held_out)):
        assert ours < 0.8 * theirs
    assert len(done.told) == 2 * EXPERTS and not any(told["fell_back"] for told in done.told.values())
    chosen = torch.cat([mixture().route(x)[0] for x in fed])
    for (_, expert), told in done.told.items():
        assert told["tokens"] == int((chosen == expert).sum())


@pytest.mark.parametrize("rare", [0.0, 0.004])
def test_an_expert_that_saw_few_tokens_comes_out_well(rare: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Better than rounded to nearest, and than by its own few tokens alone."""
    fed = [_without(tokens(4000, 3, rare=rare), int(1000 * rare))]
    made, done = mixture(), Rounding()
    round_experts(made, fed, done, sequential=True)
    assert {expert for (_, expert), told in done.told.items() if told["fell_back"]} == {RARE}
    held_out = tokens(20000, 4, rare=0.2)
    ours = errors(made, held_out)[RARE]
    assert ours < 0.9 * errors(nearest(), held_out)[RARE]
    if rare:
        alone = mixture()
        monkeypatch.setattr(blockwise_experts, "enough", lambda width: 1)
        round_experts(alone, fed, Rounding(), sequential=True)
        assert ours < 0.9 * errors(alone, held_out)[RARE]


def _without(x: Tensor, keep: int) -> Tensor:
    """x with all but `keep` of the tokens that the rare expert would get taken out."""
    mine = (mixture().route(x)[0] == RARE).any(-1)
    mine[mine.nonzero().flatten()[:keep]] = False
    return x[~mine]


@pytest.mark.parametrize("sequential", [True, False])
def test_one_hessian_is_in_memory_at_a_time(sequential: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[Hessian] = weakref.WeakSet()
    most = []

    class Counted(Hessian):
        def __init__(self, width: int, device: torch.device):
            super().__init__(width, device)
            alive.add(self)
            most.append(len(alive))

    monkeypatch.setattr(blockwise_experts, "Hessian", Counted)
    round_experts(mixture(), [tokens(500, 3, rare=0.01)], Rounding(), sequential=sequential)
    assert len(most) >= 2 * EXPERTS and max(most) == 1


def test_without_true_sequential_down_sees_what_unrounded_gates_and_ups_give() -> None:
    """And with it, what the rounded ones give."""
    fed, seen = tokens(3000, 3, rare=0.2), []

    def settle(group: LinearGroup, linears: Sequence[FrozenLinear], hessian: Hessian, **_: object) -> None:
        seen.append(hessian.matrix)
        rows = linears[-1].rows.stop - linears[0].rows.start
        group.weight.write(linears[0].rows.start, torch.zeros(rows, group.weight.in_features))

    for sequential in (True, False):
        made = mixture()
        seen.clear()
        round_experts(made, [fed], settle, sequential=sequential)
        assert len(seen) == 2 * EXPERTS and all(bool(matrix.any()) is not sequential for matrix in seen[1::2])
