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


def mixture(seed: int = 0) -> Mixture:
    """Random experts behind a router that looks for kinds of tokens, see `tokens`."""
    sizes = ExpertSizes(EXPERTS, CHOSEN, INSIDE, normalised=True)
    build = Build(NoQuant(), torch.float32, torch.device("cpu"))
    made = Mixture(build, "model.layers.0", ExpertNames(), sizes, WIDTH)
    generator = torch.Generator().manual_seed(seed)
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


def errors(rounded: Mixture, x: Tensor, seed: int = 0) -> list[float]:
    """How far each expert's output moved on its own tokens of x, relative."""
    plain, found = mixture(seed), []
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


def nearest(seed: int = 0) -> Mixture:
    made = mixture(seed)
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


@pytest.mark.parametrize("rare", [0, 4])
def test_an_expert_that_saw_few_tokens_comes_out_well(rare: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Better than rounded to nearest, and than by its own few tokens alone. Of one expert chance decides: the mean of
    several."""
    fed = [_without(tokens(4000, 3, rare=0.004), rare)]
    held_out, found = tokens(4000, 4, rare=0.2), torch.zeros(3)
    for seed in range(6):
        monkeypatch.setattr(blockwise_experts, "HELP", 1.0)
        helped, done = mixture(seed), Rounding()
        round_experts(helped, fed, done, sequential=True)
        assert {expert for (_, expert), told in done.told.items() if told["fell_back"]} == {RARE}
        monkeypatch.setattr(blockwise_experts, "HELP", 1e-9)
        alone = mixture(seed)
        round_experts(alone, fed, Rounding(), sequential=True)
        found += torch.tensor([errors(which, held_out, seed)[RARE] for which in (helped, nearest(seed), alone)])
    ours, theirs, own = found.tolist()
    assert ours < 0.85 * theirs
    assert not rare or ours < 0.85 * own


def _without(x: Tensor, keep: int) -> Tensor:
    """x with all but `keep` of the tokens that the rare expert would get taken out."""
    mine = (mixture().route(x)[0] == RARE).any(-1)
    mine[mine.nonzero().flatten()[:keep]] = False
    return x[~mine]


def test_all_tokens_together_weigh_as_many_as_there_are_inputs() -> None:
    """And of many, some that lie evenly among them stand for all."""
    fed, found = list(tokens(1000, 3, rare=0.2).split([300, 0, 450, 250])), {}

    def settle(group: LinearGroup, linears: Sequence[FrozenLinear], hessian: Hessian, **told: int) -> None:
        found[linears[-1].name] = hessian.matrix
        assert hessian.rows == pytest.approx(told["tokens"] + group.weight.in_features)

    round_experts(mixture(), fed, settle, sequential=False)
    every, down = torch.cat(fed), "model.layers.0.mlp.experts.2.down_proj"
    own = every[(mixture().route(every)[0] == 2).any(-1)]
    gate_up = torch.cat([linear.dense(torch.float32) for linear in mixture().gate_up.of_expert(2)])
    sample = every[::2]  # 16 x 32 = 512 at most
    pairs = {
        down.replace("down", "up"): (own, every),
        down: (swiglu(own @ gate_up.T, "silu"), swiglu(sample @ gate_up.T, "silu")),
    }
    for name, (mine, others) in pairs.items():
        width = mine.shape[1]
        expected = 2 * (mine.T @ mine + others.T @ others * width / len(others)) / (len(own) + width)
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sequential", [True, False])
def test_one_hessian_of_an_expert_is_in_memory_at_a_time(sequential: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[Hessian] = weakref.WeakSet()
    most = []

    class Counted(Hessian):
        def __init__(self, width: int, device: torch.device):
            super().__init__(width, device)
            alive.add(self)
            most.append(len(alive))

    monkeypatch.setattr(blockwise_experts, "Hessian", Counted)
    round_experts(mixture(), [tokens(500, 3, rare=0.01)], Rounding(), sequential=sequential)
    assert len(most) == 1 + 2 * EXPERTS and max(most) == 2  # that of all tokens is there, too


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
