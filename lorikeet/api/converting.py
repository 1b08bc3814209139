"""The verb convert: a Llama between Meta's format and a Hugging Face folder, bit for bit, one tensor in memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lorikeet.adapters import _storage as storage
from lorikeet.api.verifying import MERGED
from lorikeet.base.errors import CheckpointError, RecipeError, TokenizerError
from lorikeet.base.files import check_new, need_space, new_folder, write_file
from lorikeet.base.log import note
from lorikeet.base.tensor_file import FLOATS
from lorikeet.checkpoints import _meta_layout as layout
from lorikeet.checkpoints import _safetensors_file, _torch_file
from lorikeet.checkpoints._contract import Checkpoint
from lorikeet.checkpoints._safetensors_file import Listed
from lorikeet.checkpoints.download import resolve
from lorikeet.checkpoints.meta import PARAMS, MetaCheckpoint
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.infer import generation_config
from lorikeet.tokens.huggingface import FILES
from lorikeet.tokens.open import open_tokenizer

ORIGINAL = "original"  # where a Hugging Face folder keeps what Meta said besides the weights
_DTYPES = {name: dtype for dtype, name in FLOATS.items()}


def convert(
    source: str, folder: Path, to: Literal["hf", "meta"], *, shards: int = 1, max_shard_bytes: int = 4 << 30
) -> dict[str, Any]:
    """Write the model at `source` to `folder` in the other format; returns what was written. What lorikeet.json says of
    the model goes on (the template, the system prompt, how it was merged), and generation_config.json.

    `shards`: files of Meta's format, one for each device of its model-parallel code. Raises CheckpointError,
    ModelError or RecipeError for a model that the format cannot hold, OutputError for a folder that is in use."""
    check_new(folder)
    path = resolve(source)
    checkpoint = open_checkpoint(path)
    known = {"hf": "meta", "meta": "hf"}[to]
    if checkpoint.layout != known:
        raise CheckpointError(
            f"{path}: --to {to} reads {_spoken(known)}",
            given=_spoken(checkpoint.layout),
            try_=None if checkpoint.layout not in ("hf", "meta") else f"--to {known}",
        )
    if to == "hf" and shards != 1:
        raise RecipeError("--shards: has no effect, a Hugging Face folder is cut by size", given=shards, allowed="1")
    listed, said = _listed(checkpoint), storage.read_identity(path)
    need_space(folder, _safetensors_file.size_bytes(listed), "the converted model")
    with new_folder(folder) as made:
        if to == "hf":
            assert isinstance(checkpoint, MetaCheckpoint)
            _to_hf(checkpoint, listed, path, made, max_shard_bytes)
        else:
            _to_meta(checkpoint, listed, path, made, shards)
        answers = path / generation_config.FILE  # the same in both formats
        if answers.is_file():
            shutil.copyfile(answers, made / answers.name)
        if kept := _still_true(said, checkpoint, made):
            write_file(made / storage.IDENTITY, json.dumps(kept, indent=2) + "\n")
    files = sorted(file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".pth"))
    return {"written": str(folder), "format": _spoken(to), "tensors": len(listed), "files": len(files)}


def _still_true(said: dict[str, Any], source: Checkpoint, made: Path) -> dict[str, Any]:
    """What lorikeet.json said of the source, as far as it holds for `made`: not the hashes of other things that its key
    names, and that of the weights as they are called there."""
    kept = {key: said[key] for key in ("template", "system", MERGED) if key in said}
    merged = said.get(MERGED)
    # weights that were changed after the merge keep the hash that says so
    if isinstance(merged, dict) and merged.get("weights") == source.fingerprint():
        kept[MERGED] = merged | {"weights": open_checkpoint(made).fingerprint()}
    return kept


def _spoken(kind: str) -> str:
    return {"hf": "a Hugging Face folder", "meta": "Meta's params.json and consolidated.NN.pth"}.get(kind, kind)


def _listed(checkpoint: Checkpoint) -> list[Listed]:
    found = []
    for name in checkpoint.names():
        stored = checkpoint.stored(name)
        if stored not in _DTYPES:
            raise CheckpointError(
                f"{checkpoint.path}: tensor '{name}' is not of plain numbers", given=stored, allowed=" ".join(_DTYPES)
            )
        found.append((name, _DTYPES[stored], tuple(checkpoint.shape(name))))
    return found


def _to_hf(source: MetaCheckpoint, listed: list[Listed], path: Path, made: Path, max_shard_bytes: int) -> None:
    _safetensors_file.write_model(made, listed, source.read, max_shard_bytes)
    settings = dict(source.config)
    (made / ORIGINAL).mkdir()
    shutil.copyfile(path / PARAMS, made / ORIGINAL / PARAMS)
    if (path / "tokenizer.model").is_file():
        shutil.copyfile(path / "tokenizer.model", made / ORIGINAL / "tokenizer.model")
    try:
        tokenizer = open_tokenizer(path, source)
        tokenizer.save(made)
        if tokenizer.bos_token in tokenizer.control:
            settings["bos_token_id"] = tokenizer.control[tokenizer.bos_token]
        if tokenizer.eos_ids:
            settings["eos_token_id"] = tokenizer.eos_ids[0] if len(tokenizer.eos_ids) == 1 else list(tokenizer.eos_ids)
    except TokenizerError as error:
        note(f"no tokenizer was written: {error.what}")
    write_file(made / "config.json", json.dumps(settings, indent=2) + "\n")


def _to_meta(source: Checkpoint, listed: list[Listed], path: Path, made: Path, shards: int) -> None:
    params = _params(source, path)
    of = {name: (dtype, shape) for name, dtype, shape in listed}
    config = source.config
    tied = bool(config.get("tie_word_embeddings"))
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads") or config["num_attention_heads"]
    _refuse_strange(source, tied)
    if shards < 1 or kv_heads % shards or config["intermediate_size"] % shards or config["vocab_size"] % shards:
        raise RecipeError(
            f"--shards: the model cannot be cut into {shards} equal parts",
            given=f"{heads} heads, {kv_heads} key/value heads, feed-forward {config['intermediate_size']}, "
            f"{config['vocab_size']} tokens",
            allowed="a number that divides all of them",
            try_="--shards 1",
        )
    # the head is a tensor of its own there, also where it is the embedding
    names = [name for name in of if name != "lm_head.weight"] + ["lm_head.weight"]
    stands_for = {name: name for name in of} | ({"lm_head.weight": "model.embed_tokens.weight"} if tied else {})
    vocabulary = config["vocab_size"] >= layout.LLAMA3_VOCABULARY
    dimensions = {name: layout.split_dimension(name, vocabulary=vocabulary) for name in names}
    head_dim, back = config["hidden_size"] // heads, {layout.to_meta(name): name for name in names}
    there = []
    for name in names:
        dtype, shape = of[stands_for[name]]
        parts = tuple(size // shards if i == dimensions[name] else size for i, size in enumerate(shape))
        there.append((layout.to_meta(name), dtype, parts))
    for number in range(shards):

        def part(name: str, number: int = number) -> Tensor:
            ours = back[name]
            return _part(source.read(stands_for[ours]), ours, dimensions[ours], (number, shards), head_dim)

        _torch_file.write(made / f"consolidated.{number:02d}.pth", there, part)
    write_file(made / PARAMS, json.dumps(params) + "\n")
    _tokenizer_files(path, made)


def _params(source: Checkpoint, path: Path) -> dict[str, Any]:
    """params.json: as Meta wrote it where the folder kept it, and where it still says the same."""
    made = layout.params(source.config, path)
    original = path / ORIGINAL / PARAMS
    if not original.is_file():
        return made
    try:
        kept = json.loads(original.read_text(encoding="utf-8"))
        layout.check(kept, original)
    except (ValueError, AttributeError, CheckpointError) as error:
        raise CheckpointError(f"{original}: cannot be read", given=error, try_="remove it") from error
    agreed = all(kept.get(key) == made[key] for key in ("dim", "n_layers", "n_heads", "norm_eps"))
    return kept if agreed and (kept.get("rope_theta") or 1e4) == made["rope_theta"] else made


def _refuse_strange(source: Checkpoint, tied: bool) -> None:
    """Raise CheckpointError for a tensor that Meta's format has no name for, or for one that lacks."""
    names = set(source.names())
    layers = source.config["num_hidden_layers"]
    wanted = {f"model.layers.{i}.{one}.weight" for i in range(layers) for one in layout.LAYER.values()}
    wanted |= {f"{one}.weight" for one in layout.TOP.values() if not (tied and one == "lm_head")}
    if tied:
        names.discard("lm_head.weight")
    for name in sorted(names ^ wanted)[:1]:
        what = "has no place in Meta's format" if name in names else "is missing"
        raise CheckpointError(f"{source.path}: tensor '{name}' {what}", allowed="the tensors of a dense Llama")


def _part(whole: Tensor, name: str, dimension: int | None, of: tuple[int, int], head_dim: int) -> Tensor:
    """Part `of` (number, all) of a tensor over `dimension`, in Meta's order."""
    if dimension is None:
        return whole
    size = whole.shape[dimension] // of[1]
    part = whole.narrow(dimension, of[0] * size, size)
    return layout.pairs(part, head_dim).reshape(part.shape) if layout.rotary(name) else part.contiguous()


def _tokenizer_files(path: Path, made: Path) -> None:
    """Meta's code wants tokenizer.model and reads no other file; tokens that were added and the chat template may stand
    in the others alone."""
    copied = [name for name in FILES if (path / name).is_file()]
    for name in copied:
        shutil.copyfile(path / name, made / name)
    if (path / ORIGINAL / "tokenizer.model").is_file():
        shutil.copyfile(path / ORIGINAL / "tokenizer.model", made / "tokenizer.model")
    elif "tokenizer.model" not in copied:
        note(
            "this model has no tokenizer.model, which Meta's own code needs"
            + "; Lorikeet reads what it has" * bool(copied)
        )
