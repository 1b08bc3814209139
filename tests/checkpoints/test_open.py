from pathlib import Path

import pytest

from lorikeet.base.errors import CheckpointError
from lorikeet.checkpoints.open import open_checkpoint


def test_what_is_no_model_is_refused_with_what_was_found(tmp_path):
    with pytest.raises(CheckpointError, match="nothing is there"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="an empty folder"):
        open_checkpoint(tmp_path)
    (tmp_path / "readme.md").write_text("x")
    (tmp_path / "sub").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no model[\s\S]*readme.md sub/[\s\S]*config.json"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"not a model[\s\S]*a .md file"):
        open_checkpoint(tmp_path / "readme.md")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"not a model[\s\S]*try +{tmp_path}$"):
        open_checkpoint(tmp_path / "model.safetensors")


def test_a_folder_of_several_gguf_files_asks_for_one(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"holds no model[\s\S]*try .*a.gguf"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("inside", ["", "adapter"], ids=["an adapter", "a run"])
def test_where_a_model_is_wanted_an_adapter_is_to_be_merged_first(tmp_path: Path, inside: str) -> None:
    (tmp_path / inside).mkdir(exist_ok=True)
    (tmp_path / inside / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds no model[\s\S]*try .*lorikeet merge .* .*-merged"):
        open_checkpoint(tmp_path)
