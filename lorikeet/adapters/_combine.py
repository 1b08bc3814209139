"""Several LoRA adapters of one base as one: its update is the weighted sum of theirs. PEFT's `add_weighted_adapter`.

cat puts the A's and B's beside each other: exact, of the summed rank. svd keeps the largest directions of that sum, the
nearest there is at a given rank. linear adds A's to A's and B's to B's: small and quick, and only near where the
adapters are alike, since it also multiplies each A with every other's B. No base is opened: all is in the files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorikeet.adapters._low_rank import MOST_ALPHA
from lorikeet.adapters._storage import CONFIG, IDENTITY, WEIGHTS, read_adapter, read_json
from lorikeet.adapters._targets import PREFIX
from lorikeet.adapters.lora import Lora
from lorikeet.base.errors import CheckpointError, RecipeError
from lorikeet.base.files import check_new, new_folder, sha256_file
from lorikeet.base.log import note
from lorikeet.base.tensor_file import save_tensors

WAYS = ("cat", "svd", "linear")
SAME = ("base", "base_fingerprint", "tokenizer_fingerprint", "template_fingerprint", "template", "quant", "system")
Pair = tuple[Tensor, Tensor]  # A [R, in], B [out, R]


@dataclass(frozen=True)
class Part:
    """One of the adapters."""

    folder: Path
    weight: float
    factors: dict[str, float]  # s of each linear
    pairs: dict[str, Pair]  # by the linear's name
    config: dict[str, Any]
    identity: dict[str, Any]


def combine(
    folders: Sequence[Path], weights: Sequence[float], output: Path, *, way: str = "cat", rank: int | None = None
) -> dict[str, Any]:
    """Write the sum of `folders`' updates, each times its weight, as one adapter into `output`; returns what was made.

    Raises RecipeError for a way that does not exist, CheckpointError for adapters that cannot be added, OutputError."""
    _check(folders, weights, way, rank)
    check_new(output)
    parts = [_read(folder, weight) for folder, weight in zip(folders, weights)]
    _same_base(parts)
    names = sorted({name for part in parts for name in part.pairs})
    ranks = [len(a) for part in parts for a, _ in part.pairs.values()]
    wanted = rank if rank is not None else max(ranks)
    pairs = {name: _sum(name, [part for part in parts if name in part.pairs], way, wanted) for name in names}
    size = max(len(a) for a, _ in pairs.values())
    tensors = {}
    for name, (a, b) in pairs.items():  # of one rank: zeros change nothing
        missing = size - len(a)
        tensors[f"{PREFIX}{name}.lora_A.weight"] = torch.nn.functional.pad(a, (0, 0, 0, missing)).contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = torch.nn.functional.pad(b, (0, missing)).contiguous()
    with new_folder(output) as folder:
        save_tensors(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(_config(parts, names, size), indent=2) + "\n", encoding="utf-8")
        (folder / IDENTITY).write_text(json.dumps(_identity(parts, way), indent=2) + "\n", encoding="utf-8")
    return {"output": str(output), "adapters": len(parts), "combination": way, "r": size, "linears": len(names)}


def _check(folders: Sequence[Path], weights: Sequence[float], way: str, rank: int | None) -> None:
    if len(folders) < 2:
        raise RecipeError(
            "at least two adapters make one",
            given=" ".join(map(str, folders)) or "none",
            allowed="folders of adapters, or runs",
        )
    # NaN is not below anything; and beyond a factor's bound the sum would be written as infinity
    if len(weights) != len(folders) or not all(abs(weight) <= MOST_ALPHA for weight in weights):
        raise RecipeError(
            "--weights: one number for each adapter",
            given=f"{len(weights)} weights for {len(folders)} adapters: {' '.join(map(str, weights))}",
            allowed=f"numbers up to {MOST_ALPHA:g}, negative ones too",
            try_="--weights " + " ".join(["0.5"] * len(folders)),
        )
    if way not in WAYS:
        raise RecipeError(f"--combination: there is no '{way}'", given=way, allowed=" ".join(WAYS), try_="cat")
    if rank is not None and (way != "svd" or rank < 1):
        raise RecipeError(
            "--rank: has to be above 0" if way == "svd" else f"--rank: has no effect with --combination {way}",
            given=rank,
            allowed="a rank above 0, with --combination svd",
            try_="--combination svd --rank 16",
        )


def _read(folder: Path, weight: float) -> Part:
    """An adapter or a run's. Raises CheckpointError for one that is more than A's and B's."""
    folder = folder / "adapter" if (folder / "adapter" / CONFIG).is_file() else folder
    adapter, tensors, identity = read_adapter(folder)
    if not isinstance(adapter, Lora) or adapter.bias != "none" or adapter.init_lora_weights is not True:
        kind = adapter.model_dump().get("kind")
        given = f"kind {kind}" if not isinstance(adapter, Lora) else f"trained biases ({adapter.bias})"
        raise CheckpointError(
            f"the adapter in {folder} is more than a low-rank update, and cannot be added to another",
            given=given if not isinstance(adapter, Lora) or adapter.bias != "none" else adapter.init_lora_weights,
            allowed="adapters of kind lora, without biases",
        )
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        stem, _, end = name.removesuffix(".weight").rpartition(".")
        if end not in ("lora_A", "lora_B") or stem.endswith((".experts", ".experts.base_layer")) or tensor.dim() != 2:
            raise CheckpointError(
                f"the adapter in {folder} has a tensor that cannot be added to another's",
                given=name,
                allowed="lora_A.weight and lora_B.weight of linears",
                try_="for experts that PEFT has stacked, an adapter that Lorikeet has saved",
            )
        found.setdefault(stem.removeprefix(PREFIX), {})[end] = tensor.float()
    pairs = {name: (pair["lora_A"], pair["lora_B"]) for name, pair in found.items() if len(pair) == 2}
    if len(pairs) < len(found) or not pairs:
        raise CheckpointError(f"the adapter in {folder} is damaged", given="A without B, or neither")
    factors = {name: adapter.factor_of(name) for name in pairs}
    return Part(folder, weight, factors, pairs, read_json(folder / CONFIG), identity)


def _same_base(parts: Sequence[Part]) -> None:
    """Raise CheckpointError where two belong to different weights: by hash, or by name where a file has no hash."""
    first = parts[0]
    for part in parts[1:]:
        hashes = [one.identity.get("base_fingerprint") for one in (first, part)]
        names = [one.config.get("base_model_name_or_path") for one in (first, part)]
        if hashes[0] != hashes[1] if all(hashes) else all(names) and names[0] != names[1]:
            raise CheckpointError(
                f"the adapters in {first.folder} and {part.folder} were trained on different base models",
                given=f"{names[1]} {str(hashes[1] or '')[:12]}".strip(),
                allowed=f"{names[0]} {str(hashes[0] or '')[:12]}".strip(),
            )
    if len({part.identity.get("template_fingerprint") for part in parts}) > 1:
        note("the adapters were trained with different templates; the sum names none, so the model's own is used")


def _sum(name: str, parts: Sequence[Part], way: str, rank: int) -> Pair:
    """A and B of the sum on one linear, to be used with factor 1. Raises CheckpointError where sizes differ."""
    sizes = {(b.shape[0], a.shape[1]) for a, b in (part.pairs[name] for part in parts)}
    if len(sizes) > 1:
        raise CheckpointError(
            f"the adapters do not fit each other: {name}", given=" ".join(map(str, sorted(sizes))), allowed="one size"
        )
    factors = [part.weight * part.factors[name] for part in parts]
    if way == "linear":
        return _added(name, parts, factors)
    a = torch.cat([factor * part.pairs[name][0] for part, factor in zip(parts, factors)])
    b = torch.cat([part.pairs[name][1] for part in parts], 1)
    return (a, b) if way == "cat" else _largest(a, b, rank)


def _added(name: str, parts: Sequence[Part], factors: Sequence[float]) -> Pair:
    """The sums of A's and of B's, each with the root of its factor; the sign goes with A."""
    ranks = {str(part.folder): len(part.pairs[name][0]) for part in parts}
    if len(set(ranks.values())) > 1:
        raise CheckpointError(
            f"--combination linear: the adapters differ in rank at {name}",
            given=" ".join(f"{folder}: {r}" for folder, r in ranks.items()),
            allowed="one rank",
            try_="--combination cat, or svd with --rank",
        )
    roots = [math.sqrt(abs(factor)) for factor in factors]
    signed = [math.copysign(root, factor) for root, factor in zip(roots, factors)]
    a = torch.stack([root * part.pairs[name][0] for root, part in zip(signed, parts)]).sum(0)
    b = torch.stack([root * part.pairs[name][1] for root, part in zip(roots, parts)]).sum(0)
    return a, b


def _largest(a: Tensor, b: Tensor, rank: int) -> Pair:
    """The `rank` largest directions of B A, which is never made dense: B = Q1 R1, A^T = Q2 R2, and R1 R2^T is small."""
    q1, r1 = torch.linalg.qr(b.double())
    q2, r2 = torch.linalg.qr(a.double().T)
    u, s, vh = torch.linalg.svd(r1 @ r2.T)
    rank = min(rank, len(s))
    return (vh[:rank] @ q2.T).float(), (q1 @ u[:, :rank] * s[:rank]).float()


def _config(parts: Sequence[Part], names: Sequence[str], rank: int) -> dict[str, Any]:
    targets = [part.config.get("target_modules") for part in parts]
    narrowed = ("layers_to_transform", "exclude_modules", "target_parameters")
    plain = all(
        isinstance(one, list) and not any(part.config.get(key) for key in narrowed) for one, part in zip(targets, parts)
    )
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": parts[0].config.get("base_model_name_or_path", ""),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "target_modules": sorted({word for one in targets for word in one or ()}) if plain else list(names),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }


def _identity(parts: Sequence[Part], way: str) -> dict[str, Any]:
    """lorikeet.json: what all agree on, and of what it is the sum."""
    first = parts[0].identity
    same = {
        key: first[key] for key in SAME if key in first and all(_has(part.identity, key, first[key]) for part in parts)
    }
    made = [{"sha256": sha256_file(part.folder / WEIGHTS), "weight": part.weight} for part in parts]
    return same | {"combination": way, "parts": made}


def _has(identity: Mapping[str, Any], key: str, value: Any) -> bool:
    return key in identity and identity[key] == value
