import re
import sys
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorikeet.base.errors import CheckpointError
from lorikeet.checkpoints import gguf as gguf_kind
from lorikeet.checkpoints.open import open_checkpoint

Q = gguf.GGMLQuantizationType
QUANTISED = [Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path, *, tokens=3000, seed=0):
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.eps", 0.5)
    writer.add_bool("flag", True)
    writer.add_string("text", "zwölf")
    writer.add_int64("negative", -5)
    writer.add_array("short", [1, 2, 3])
    writer.add_array("flags", [True, False])
    writer.add_array("tokenizer.ggml.tokens", [f"tök{i}" for i in range(tokens)])
    writer.add_array("tokenizer.ggml.scores", [float(i) for i in range(tokens)])
    want = {}
    for kind in QUANTISED:
        values = rng.standard_normal((7, 64)).astype(np.float32)
        packed = gguf.quants.quantize(values, kind)
        writer.add_tensor(f"blk.{kind.name}.weight", packed, raw_dtype=kind)
        want[f"blk.{kind.name}.weight"] = torch.from_numpy(gguf.quants.dequantize(packed, kind))
    norm = rng.standard_normal(5).astype(np.float32)
    half = rng.standard_normal((3, 5)).astype(np.float16)
    brain = torch.from_numpy(rng.standard_normal((3, 4)).astype(np.float32)).bfloat16()
    writer.add_tensor("norm.weight", norm)
    writer.add_tensor("half.weight", half)
    writer.add_tensor("brain.weight", brain.view(torch.uint8).numpy(), raw_dtype=Q.BF16)
    want |= {"norm.weight": torch.from_numpy(norm), "half.weight": torch.from_numpy(half), "brain.weight": brain}
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return want


def test_metadata_is_plain_python_and_long_arrays_wait(tmp_path):
    write(tmp_path / "m.gguf")
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert checkpoint.layout == "gguf"
    assert checkpoint.config == {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.eps": 0.5,
        "flag": True,
        "text": "zwölf",
        "negative": -5,
        "short": [1, 2, 3],
        "flags": [True, False],
    }
    assert type(checkpoint.config["flag"]) is bool and type(checkpoint.config["llama.eps"]) is float
    assert checkpoint.metadata("tokenizer.ggml.tokens") == [f"tök{i}" for i in range(3000)]
    assert checkpoint.metadata("tokenizer.ggml.scores")[-1] == 2999.0
    assert checkpoint.metadata("text") == "zwölf" and checkpoint.metadata("absent") is None


def test_tensors_are_what_the_gguf_package_dequantises(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_kind, "DEQUANTISE_ELEMENTS", 3 * 64)  # several blocks of rows, the last one smaller
    want = write(tmp_path / "m.gguf")
    checkpoint = open_checkpoint(tmp_path)  # a folder with one .gguf file opens too
    assert sorted(checkpoint.names()) == sorted(want)
    for name, tensor in want.items():
        got = checkpoint.read(name)
        assert got.dtype == tensor.dtype and checkpoint.shape(name) == tuple(tensor.shape) == tuple(got.shape)
        assert torch.equal(got, tensor), name


def test_fingerprint_sees_the_weights(tmp_path):
    write(tmp_path / "a.gguf")
    write(tmp_path / "b.gguf", tokens=5)
    write(tmp_path / "c.gguf", seed=1)
    a, b, c = (open_checkpoint(tmp_path / f"{name}.gguf").fingerprint() for name in "abc")
    assert a == b != c


@settings(max_examples=60, deadline=None)
@given(part=st.floats(0, 0.9999))
def test_cut_off_anywhere_is_refused(tmp_path_factory, part):
    path = tmp_path_factory.mktemp("cut") / "m.gguf"
    write(path, tokens=20)
    whole = path.read_bytes()
    # the file ends with padding after the last tensor: cut into the data before it
    path.write_bytes(whole[: int(part * (len(whole) - 32))])
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert str(caught.value).count("\n") <= 3


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damaged_headers_never_escape_as_other_errors(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "m.gguf"
    write(path, tokens=5)
    content = bytearray(path.read_bytes())
    for _ in range(3):
        content[data.draw(st.integers(4, 900))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        checkpoint = open_checkpoint(path)
        for name in checkpoint.names():
            checkpoint.read(name)
    except CheckpointError:
        pass


def test_refusals(tmp_path):
    path = tmp_path / "m.gguf"

    def refused(match):
        with pytest.raises(CheckpointError, match=match):
            open_checkpoint(path)

    path.write_bytes(b"")
    refused("empty file")
    path.write_bytes(b"PK\x03\x04" + b"\0" * 100)
    refused("not a GGUF file")
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\x01" + whole[5:])
    refused("version 1")
    path.write_bytes(whole[:4] + b"\0\0\0\x03" + whole[8:])
    refused("big-endian")
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(r"one of 3 parts[\s\S]*--merge")


def test_missing_tensor_names_the_nearest(tmp_path):
    write(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match=r"no tensor 'norm.wight'[\s\S]*norm.weight"):
        open_checkpoint(tmp_path / "m.gguf").read("norm.wight")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reading_in_a_dtype_piece_by_piece_equals_converting_the_whole(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(gguf_kind, "DEQUANTISE_ELEMENTS", 3 * 64)
    want = write(tmp_path / "m.gguf")
    checkpoint = open_checkpoint(tmp_path)
    for kind in QUANTISED:
        name = f"blk.{kind.name}.weight"
        got = checkpoint.read(name, dtype=dtype)
        assert got.dtype == dtype and torch.equal(got, want[name].to(dtype))
        assert torch.equal(checkpoint.read(name, 3, dtype=dtype), want[name][3].to(dtype))
    assert checkpoint.read("norm.weight", dtype=dtype).dtype == torch.float32  # not quantised: as it is stored


def test_reading_makes_no_whole_float32_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_kind, "DEQUANTISE_ELEMENTS", 1 << 12)
    rows, columns = 2048, 256
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    packed = gguf.quants.quantize(np.ones((rows, columns), np.float32), Q.Q8_0)
    writer.add_tensor("a.weight", packed, raw_dtype=Q.Q8_0)
    for write_part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write_part()
    writer.close()
    checkpoint = open_checkpoint(tmp_path)
    tracemalloc.start()  # numpy's arrays are seen, torch's are not: what is left is what is needed on the way
    try:
        checkpoint.read("a.weight", dtype=torch.bfloat16)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < rows * columns * 4 / 8


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_of_the_file_are_given_back_after_reading(tmp_path):
    write(tmp_path / "m.gguf")
    checkpoint = open_checkpoint(tmp_path)
    for name in checkpoint.names():
        checkpoint.read(name)
    checkpoint.fingerprint()
    mapped = Path("/proc/self/smaps").read_text().split(str(tmp_path / "m.gguf"))[1]
    assert re.search(r"Rss:\s+0 kB", mapped.split("Pss:")[0])
