"""A model of 7 or 13 billion weights on a small machine: written, trained, gone on with, asked; what each part took.

    python benchmarks/big_model.py write runs/bench/llama-7b --shape 7b
    python benchmarks/big_model.py run runs/bench/llama-7b --json 7b.json

`write` makes a Llama of Llama 2's sizes with normal random weights, straight into safetensors files: a piece of one
tensor is in memory at a time. `run` is the product itself: `lorikeet plan`, `lorikeet train` stopped after its first
step, the same command again, `lorikeet predict`, each a process of its own whose peak of resident memory is read for
every part (see watched.py). A step has 2,048 tokens, in rows of --row-tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import big_model_run
import torch
import workloads

from lorikeet.base.errors import LorikeetError, OutputError
from lorikeet.base.files import need_space, new_folder, write_file
from lorikeet.base.rng import derive
from lorikeet.demo.notes import make_notes

SHAPES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
}
PIECE = 1 << 22  # weights drawn at a time
SHARD_BYTES = 4 << 30
Shapes = dict[str, tuple[int, ...]]


def settings(shape: str, layers: int | None = None, **changes: int) -> dict[str, Any]:
    """config.json of Llama 2 in this shape, with `layers` of its layers."""
    sizes = workloads.TINYLLAMA | {"max_position_embeddings": 4096} | SHAPES[shape] | changes
    sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    return sizes | ({} if layers is None else {"num_hidden_layers": layers})


def shards(shapes: Shapes, most_bytes: int = SHARD_BYTES) -> list[Shapes]:
    """The tensors in their order, cut into files of at most `most_bytes` (or one tensor, if larger)."""
    found: list[Shapes] = [{}]
    held = 0
    for name, shape in shapes.items():
        size = _bytes({name: shape})
        if found[-1] and held + size > most_bytes:
            found.append({})
            held = 0
        found[-1][name] = shape
        held += size
    return found


def write(folder: Path, sizes: dict[str, Any], *, seed: int = 0, shard_bytes: int = SHARD_BYTES) -> int:
    """Write the model's folder; returns the bytes of its weights. The same seed writes the same weights.

    Raises OutputError where the folder exists or the disk is too small, before anything is written."""
    shapes = workloads.llama_shapes(sizes)
    total = _bytes(shapes)
    if folder.exists():
        raise OutputError(f"{folder} exists already", given=str(folder), try_="another folder, or remove this one")
    need_space(folder, total + (64 << 20), f"{total / 1e9:.1f} GB of weights")
    with new_folder(folder) as made:
        parts, where = shards(shapes, shard_bytes), dict[str, str]()
        for number, part in enumerate(parts):
            file = "model.safetensors"
            if len(parts) > 1:
                file = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
            where |= dict.fromkeys(part, file)
            _write_shard(made / file, part, sizes["num_hidden_layers"], seed)
            print(f"{file}: {len(part)} tensors, {_bytes(part) / 1e9:.2f} GB", file=sys.stderr, flush=True)
        if len(parts) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": where}
            write_file(made / "model.safetensors.index.json", json.dumps(index, indent=1) + "\n")
        write_file(made / "config.json", json.dumps(sizes, indent=1) + "\n")
        said = (message["content"] for row in make_notes(400, 0, seed)[0] for message in row["messages"])
        workloads.write_tokenizer(made, said, min(8192, sizes["vocab_size"]), sizes["max_position_embeddings"])
    return total


def _write_shard(file: Path, shapes: Shapes, layers: int, seed: int) -> None:
    """The file's header (safetensors: its length in 8 bytes, then JSON), then each tensor in pieces."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes.items():
        end = start + _bytes({name: shape})
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as sink:
        sink.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            for piece in pieces(name, shape, layers, seed):
                sink.write(piece.view(torch.uint8).numpy().data)


def pieces(name: str, shape: tuple[int, ...], layers: int, seed: int) -> Iterator[torch.Tensor]:
    """The tensor's numbers in order, bfloat16. Norms are one; matrices are normal with deviation 0.02, those that
    add to the residual stream less by sqrt(2 layers), so that it stays of one size and logits are those of a model
    that has learned nothing."""
    left = 1
    for size in shape:
        left *= size
    if len(shape) == 1:
        yield torch.ones(left, dtype=torch.bfloat16)
        return
    deviation = 0.02 / ((2 * layers) ** 0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1)
    generator = torch.Generator().manual_seed(derive(seed, "big model", name))
    while left:
        count = min(left, PIECE)
        yield torch.randn(count, generator=generator).mul_(deviation).bfloat16()
        left -= count


def _bytes(shapes: Shapes) -> int:
    return sum(2 * int(torch.Size(shape).numel()) for shape in shapes.values())


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    made = verbs.add_parser("write", help="a model with random weights")
    made.add_argument("folder", type=Path)
    made.add_argument("--shape", choices=SHAPES, default="7b")
    made.add_argument("--layers", type=int, help="fewer layers of the same width; default: all")
    made.add_argument("--seed", type=int, default=0)
    ran = verbs.add_parser("run", help="plan, train a step, stop, go on, ask")
    ran.add_argument("folder", type=Path, help="what `write` wrote")
    ran.add_argument("--work", type=Path, help="where data and run go; default: FOLDER-run")
    ran.add_argument("--row-tokens", type=int, default=2048, help="of the step's 2,048: one row, or several")
    ran.add_argument("--quant", default="nf4", help="a kind, or options in JSON; default: nf4, double quantised")
    ran.add_argument("--threads", type=int, help="model.threads")
    ran.add_argument("--parts", nargs="+", choices=big_model_run.PARTS, default=big_model_run.PARTS)
    ran.add_argument("--json", type=Path, help="write the figures here too")
    return parser.parse_args(words)


def main() -> int:
    asked = arguments()
    try:
        if asked.verb == "write":
            print(f"{write(asked.folder, settings(asked.shape, asked.layers), seed=asked.seed) / 1e9:.2f} GB")
            return 0
        work = asked.work or asked.folder.with_name(f"{asked.folder.name}-run")
        found = big_model_run.run(
            asked.folder, work, row_tokens=asked.row_tokens, quant=big_model_run.quant_of(asked.quant),
            threads=asked.threads, parts=asked.parts,
        )  # fmt: skip
    except LorikeetError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if asked.json:
        write_file(asked.json, json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
