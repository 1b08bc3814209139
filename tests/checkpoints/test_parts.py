"""One entry of a stacked tensor is read alone: an expert of many, from every kind of checkpoint."""

from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import save_file

from lorikeet.checkpoints.open import open_checkpoint

STACK = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0))


def folder(path: Path, pickled: bool) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    if pickled:
        torch.save({"stack": STACK}, path / "pytorch_model.bin")
    else:
        save_file({"stack": STACK}, path / "model.safetensors", metadata={"format": "pt"})
    return path


def file(path: Path, kind: gguf.GGMLQuantizationType) -> Path:
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tensor("stack", gguf.quants.quantize(STACK.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("layout", ["safetensors", "pickle", "F16", "F32", "Q8_0"])
def test_a_part_is_the_same_as_in_the_whole(layout: str, tmp_path: Path) -> None:
    if layout in ("safetensors", "pickle"):
        checkpoint = open_checkpoint(folder(tmp_path / "model", layout == "pickle"), allow_pickle=True)
    else:
        checkpoint = open_checkpoint(file(tmp_path / "model.gguf", gguf.GGMLQuantizationType[layout]))
    whole = checkpoint.read("stack")
    assert whole.shape == (3, 4, 32) and (whole - STACK).abs().max() < 0.02
    for part in range(3):
        torch.testing.assert_close(checkpoint.read("stack", part), whole[part], rtol=0, atol=0)
