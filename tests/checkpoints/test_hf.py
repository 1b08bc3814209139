import json
import pickle
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorikeet.base.errors import CheckpointError
from lorikeet.base.files import new_folder
from lorikeet.checkpoints import hf
from lorikeet.checkpoints.open import open_checkpoint

CONFIG = {"model_type": "llama", "note": "ä"}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def tensors():
    generator = torch.Generator().manual_seed(0)
    for i, dtype in enumerate([torch.float32, torch.bfloat16, torch.float16, torch.float32]):
        yield f"layers.{i}.weight", torch.randn(4 + i, 3, generator=generator).to(dtype)
    yield "scalar", torch.tensor(3.0)


def written(path: Path, **options) -> Path:
    with new_folder(path) as folder:
        hf.save(folder, CONFIG, tensors(), **options)
    return path


@pytest.mark.parametrize("max_shard_bytes", [1, 60, 1 << 20])
def test_what_is_saved_is_read(tmp_path, max_shard_bytes):
    path = written(tmp_path / "model", max_shard_bytes=max_shard_bytes)
    checkpoint = open_checkpoint(path)
    assert checkpoint.layout == "hf" and checkpoint.config == CONFIG
    want = dict(tensors())
    assert sorted(checkpoint.names()) == sorted(want)
    for name, tensor in want.items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        got = checkpoint.read(name)
        assert got.dtype == tensor.dtype and torch.equal(got, tensor)


def test_shards_have_the_standard_names_and_stay_under_the_limit(tmp_path):
    path = written(tmp_path / "model", max_shard_bytes=90)
    index = json.loads((path / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    assert sorted(file.name for file in path.glob("*.safetensors")) == files
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for _, t in tensors())
    for file in files:
        assert sum(t.numel() * t.element_size() for t in load_file(path / file).values()) <= 90


def test_transformers_style_single_file(tmp_path):
    path = written(tmp_path / "model")
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "model.safetensors"]


def test_never_more_than_one_tensor_is_held(tmp_path):
    made = []

    def many():
        for i in range(9):
            assert sum(one() is not None for one in made) <= 1
            made.append(weakref.ref(tensor := torch.full((10,), float(i))))
            yield f"t{i}", tensor
            del tensor

    hf.save(tmp_path, {}, many(), max_shard_bytes=1 << 20)
    assert [float(open_checkpoint(tmp_path).read(f"t{i}")[0]) for i in range(9)] == list(range(9))
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == ["config.json", "model.safetensors"]


def test_every_dtype_is_aligned_and_read_by_safetensors(tmp_path):
    names = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    want = {f"odd.{i}.{name}": torch.arange(i + 1).to(getattr(torch, name)) for i in (2, 4) for name in names}
    want |= {"empty": torch.zeros(0, 3), 'name " ä': torch.ones(1, dtype=torch.uint8)}
    hf.save(tmp_path, {}, iter(want.items()))
    got = load_file(tmp_path / "model.safetensors")
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) and got[name].dtype == want[name].dtype for name in want)


def test_what_cannot_go_on_leaves_no_spool(tmp_path):
    def failing():
        yield "a", torch.zeros(4)
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        hf.save(tmp_path, {}, failing())
    assert [file.name for file in tmp_path.iterdir() if file.name.endswith(".spool")] == []


def test_tied_and_sliced_tensors_can_be_saved(tmp_path):
    base = torch.arange(12.0).reshape(4, 3)
    hf.save(tmp_path, {}, iter([("a", base), ("b", base), ("c", base[1:2]), ("d", base.T)]))
    got = open_checkpoint(tmp_path)
    assert (
        torch.equal(got.read("b"), base)
        and torch.equal(got.read("c"), base[1:2])
        and torch.equal(got.read("d"), base.T)
    )


def test_fingerprint_ignores_sharding_and_sees_contents(tmp_path):
    one = open_checkpoint(written(tmp_path / "one")).fingerprint()
    two = open_checkpoint(written(tmp_path / "two", max_shard_bytes=1)).fingerprint()
    assert one == two
    other = dict(tensors())
    other["layers.1.weight"][0, 0] += 1
    hf.save(tmp_path / "two", CONFIG, other.items(), max_shard_bytes=1)
    assert open_checkpoint(tmp_path / "two").fingerprint() != one


def test_fingerprint_is_computed_once(tmp_path, monkeypatch):
    path = written(tmp_path / "model")
    first = open_checkpoint(path).fingerprint()
    monkeypatch.setattr(hf.HuggingFaceCheckpoint, "read", lambda *_: pytest.fail("read again"))
    assert open_checkpoint(path).fingerprint() == first


def refused(path: Path, *words: str, **options) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, **options)
    message = str(caught.value)
    assert message.count("\n") <= 3 and message.startswith("CheckpointError: "), message
    for word in words:
        assert word in message, message


def test_refusals_of_single_files(tmp_path):
    path = written(tmp_path / "model")
    whole = (path / "model.safetensors").read_bytes()
    for cut in (0, 4, 30, len(whole) - 1):
        (path / "model.safetensors").write_bytes(whole[:cut])
        refused(path, "damaged or cut off", "download")
    (path / "model.safetensors").write_bytes(b"\xff" * 100)
    refused(path, "damaged or cut off")
    (path / "model.safetensors").unlink()
    refused(path, "no weights")


def test_refusals_of_config(tmp_path):
    path = written(tmp_path / "model")
    (path / "config.json").write_text('{"a": ')
    refused(path, "config.json: not JSON")
    (path / "config.json").write_bytes(b'{"a": "\xff"}')
    refused(path, "config.json: not JSON")
    (path / "config.json").write_text("[]")
    refused(path, "not a JSON object")
    (path / "config.json").unlink()
    refused(path, "no config.json")


def test_refusals_of_shards(tmp_path):
    path = written(tmp_path / "model", max_shard_bytes=1)
    index = path / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    (path / "model-00002-of-00005.safetensors").rename(tmp_path / "away")
    refused(path, "1 of 5 shards are missing", "model-00002-of-00005.safetensors")
    (tmp_path / "away").rename(path / "model-00002-of-00005.safetensors")
    index.write_text(json.dumps({"weight_map": good["weight_map"] | {"more": "model-00001-of-00005.safetensors"}}))
    refused(path, "the index names 1 tensors", "'more'")
    index.write_text(json.dumps({"weight_map": {"a": "../away.safetensors"}}))
    refused(path, "shards are missing")
    index.write_text("{}")
    refused(path, "weight_map")
    index.write_text("{")
    refused(path, "not JSON")


def test_missing_tensor_names_the_nearest(tmp_path):
    checkpoint = open_checkpoint(written(tmp_path / "model"))
    for ask in (checkpoint.read, checkpoint.shape):
        with pytest.raises(CheckpointError, match=r"no tensor 'layers.0.wight'[\s\S]*layers.0.weight"):
            ask("layers.0.wight")


class Evil:
    def __reduce__(self):
        return (eval, ("__import__('pathlib').Path('owned').touch()",))


@pytest.mark.parametrize("sharded", [False, True])
def test_pickles_are_refused_unless_told(tmp_path, sharded):
    (tmp_path / "config.json").write_text("{}")
    want = dict(tensors())
    if sharded:
        names = {}
        for i, (name, tensor) in enumerate(want.items()):
            names[name] = f"pytorch_model-{i}.bin"
            torch.save({name: tensor}, tmp_path / names[name])
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    else:
        torch.save(want, tmp_path / "pytorch_model.bin")
    refused(tmp_path, "pickle", "safetensors")
    checkpoint = open_checkpoint(tmp_path, allow_pickle=True)
    for name, tensor in want.items():
        assert torch.equal(checkpoint.read(name), tensor) and checkpoint.shape(name) == tuple(tensor.shape)
    assert len(checkpoint.fingerprint()) == 64


def test_allowed_pickles_still_run_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    torch.save({"a": Evil()}, tmp_path / "pytorch_model.bin")
    refused(tmp_path, "plain tensors", allow_pickle=True)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    refused(tmp_path, "plain tensors", allow_pickle=True)
    torch.save([torch.zeros(1)], tmp_path / "pytorch_model.bin")
    refused(tmp_path, "not a mapping", allow_pickle=True)
    assert not (tmp_path / "owned").exists()


def test_safetensors_are_preferred_to_pickles(tmp_path):
    path = written(tmp_path / "model")
    torch.save({"a": torch.zeros(1)}, path / "pytorch_model.bin")
    assert "a" not in open_checkpoint(path).names()


def test_safetensors_without_metadata_open(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert torch.equal(open_checkpoint(tmp_path).read("a"), torch.ones(2))


def test_transformers_reads_what_is_saved(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 32}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    with new_folder(tmp_path / "model") as folder:
        hf.save(folder, model.config.to_dict(), model.state_dict().items(), max_shard_bytes=5000)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    read = LlamaForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(tensor, read[name]) for name, tensor in model.state_dict().items())


def test_how_tensors_are_stored(tmp_path):
    tensors = {"a": torch.ones(2), "b": torch.ones(2, dtype=torch.bfloat16), "c": torch.ones(2, dtype=torch.int64)}
    hf.save(tmp_path, {}, iter(tensors.items()))
    safe = open_checkpoint(tmp_path)
    assert {name: safe.stored(name) for name in safe.names()} == {"a": "F32", "b": "BF16", "c": "I64"}
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    pickled = open_checkpoint(tmp_path, allow_pickle=True)
    assert {name: pickled.stored(name) for name in pickled.names()} == {"a": "F32", "b": "BF16", "c": "I64"}
    with pytest.raises(CheckpointError, match="no tensor 'd'"):
        safe.stored("d")
