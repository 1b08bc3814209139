# ruff: noqa: E501  a table of cases is read by its rows
import json
import shutil

import pytest

from lorikeet.base.errors import CheckpointError
from lorikeet.checkpoints.open import open_checkpoint

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 2471645608\n".format("a" * 64)
SHARD = "model-{:05d}-of-00003.safetensors"


@pytest.fixture
def model(tiny_model, tmp_path):
    """A copy of the tiny model to damage."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def write(path, content="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def shards(model, *numbers, index=True):
    """The weights as shards, of which only some are there."""
    weights = model / "model.safetensors"
    for number in numbers:
        shutil.copy(weights, model / SHARD.format(number))
    weights.unlink()
    if index:
        where = {f"tensor{number}": SHARD.format(number) for number in (1, 2, 3)}
        write(model / "model.safetensors.index.json", json.dumps({"weight_map": where}))


def begun(model, name):
    """The weights are not there, but the beginning of their download is."""
    (model / "model.safetensors").unlink()
    write(model / name)


CASES = {
    "pointer: weights": (lambda m: write(m / "model.safetensors", POINTER), r"model.safetensors: only a pointer.*\n.*2,471,645,608"),
    "pointer: tokenizer": (lambda m: write(m / "tokenizer.json", POINTER), r"tokenizer.json: only a pointer[\s\S]*git lfs pull"),
    "pointer: a shard": (lambda m: (shards(m, 1, 3), write(m / SHARD.format(2), POINTER)), r"model-00002-of-00003.safetensors: only"),
    "aria2": (lambda m: write(m / "model.safetensors.aria2"), r"model.safetensors: a download that did not finish"),
    "browser": (lambda m: begun(m, "model.safetensors.crdownload"), r"did not finish\n.*model.safetensors.crdownload"),
    "hf client": (lambda m: begun(m, ".cache/huggingface/download/x.incomplete"), r"did not finish\n.*download/x.incomplete"),
    "modelscope client": (lambda m: begun(m, "._____temp/model.safetensors"), r"did not finish\n.*temp/model.safetensors"),
    "ours": (lambda m: begun(m, "model.safetensors.part"), r"did not finish\n.*model.safetensors.part"),
    "a missing shard": (lambda m: shards(m, 1, 3), r"1 of 3 shards are missing: .*did not finish\n.*no model-00002-of-00003.safetensors"),
    "shards, no index": (lambda m: shards(m, 1, index=False), r"no weights.*did not finish\n.*no model-00002-of-00003"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_half_downloaded_models_are_refused_by_name(model, case):
    damage, said = CASES[case]
    damage(model)
    with pytest.raises(CheckpointError, match=said) as caught:
        open_checkpoint(model)
    assert len(str(caught.value).split("\n")) <= 4


def test_gguf_files(tmp_path):
    write(tmp_path / "a.gguf", POINTER)
    with pytest.raises(CheckpointError, match=r"a.gguf: only a pointer"):
        open_checkpoint(tmp_path / "a.gguf")
    write(tmp_path / "b.gguf.part")
    with pytest.raises(CheckpointError, match=r"no model at .*did not finish[\s\S]*b.gguf.part"):
        open_checkpoint(tmp_path / "b.gguf")


def test_a_whole_model_with_old_traces_is_whole(model):
    write(model / ".cache/huggingface/download/old.incomplete")
    write(model / "README.md.part")
    write(model / "notes-00001-of-00002.bin")
    assert open_checkpoint(model).names()
