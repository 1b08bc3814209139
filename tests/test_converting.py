"""What goes on with a model that is converted, besides its tensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lorikeet.api.answering import locate, trained_system
from lorikeet.api.converting import convert
from lorikeet.base.errors import CheckpointError
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.tokens.open import open_tokenizer


@pytest.mark.parametrize("tied", [False, True])
def test_what_a_merged_folder_says_of_itself_goes_on(make_model: Any, tied: bool, tmp_path: Path) -> None:
    model = make_model(tmp_path / "merged", vocab_size=304, tie_word_embeddings=tied)
    before = open_checkpoint(model).fingerprint()
    merged = {"run": "runs/a", "adapter_sha256": "ab", "weights": before}
    said = {"template": {"kind": "vicuna"}, "system": "Be brief.", "merged": merged, "base_fingerprint": "of the base"}
    (model / "lorikeet.json").write_text(json.dumps(said))
    ends = {"bos_token_id": None, "eos_token_id": [1, 2], "pad_token_id": 0}
    (model / "generation_config.json").write_text(json.dumps(ends))
    convert(str(model), tmp_path / "meta", "meta")
    convert(str(tmp_path / "meta"), tmp_path / "hf", "hf")
    for folder in (tmp_path / "meta", tmp_path / "hf"):
        assert trained_system(folder) == "Be brief."
        assert locate(folder).template.model_dump()["kind"] == "vicuna"
        kept = json.loads((folder / "lorikeet.json").read_text())
        # the head that is the embedding is a tensor of its own from here on, so the hash is of other tensors
        assert kept["merged"] == merged | {"weights": open_checkpoint(folder).fingerprint()}
        assert (kept["merged"]["weights"] == before) is not tied
        assert "base_fingerprint" not in kept
        assert json.loads((folder / "generation_config.json").read_text()) == ends
        tokenizers = [open_tokenizer(one, open_checkpoint(one)) for one in (model, folder)]
        assert tokenizers[0].eos_ids == tokenizers[1].eos_ids
        assert tokenizers[0].chat_template == tokenizers[1].chat_template


def test_weights_that_were_changed_after_the_merge_stay_known_as_changed(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "merged")
    (model / "lorikeet.json").write_text(json.dumps({"merged": {"weights": "of before"}}))
    convert(str(model), tmp_path / "meta", "meta")
    assert json.loads((tmp_path / "meta" / "lorikeet.json").read_text()) == {"merged": {"weights": "of before"}}
    (model / "lorikeet.json").write_text("{")  # found before a tensor is written
    with pytest.raises(CheckpointError, match=r"lorikeet\.json"):
        convert(str(model), tmp_path / "other", "meta")
    assert not (tmp_path / "other").exists()


def test_a_model_that_nothing_was_said_of_says_nothing(tiny_model: Path, tmp_path: Path) -> None:
    convert(str(tiny_model), tmp_path / "meta", "meta")
    assert not (tmp_path / "meta" / "lorikeet.json").exists()
