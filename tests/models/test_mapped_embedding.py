"""An embedding that stays in its file: the same rows, no memory, and only where that is right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from lorikeet.base.errors import CheckpointError
from lorikeet.base.tensor_file import FLOATS
from lorikeet.checkpoints import hf
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.models.build import Build, MappedEmbedding
from lorikeet.models.load import identify, load
from lorikeet.models.mapped_embedding import mapped_embedding
from lorikeet.models.mapped_rows import MappedRows
from lorikeet.quant.none import NoQuant

CPU = torch.device("cpu")
NAME = "model.embed_tokens.weight"


def rows_of(folder: Path, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> MappedRows | None:
    checkpoint = open_checkpoint(folder, allow_pickle=True)
    return mapped_embedding(checkpoint, *identify(checkpoint), dtype, device)


@pytest.fixture(scope="module", params=list(FLOATS), ids=str)
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[MappedRows, torch.Tensor]:
    """Rows in the second of two tensors of a file, behind one of an odd number of bytes."""
    folder = tmp_path_factory.mktemp("rows")
    table = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(request.param)
    save_file({"b.weight": table, "a": torch.arange(7, dtype=torch.uint8)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    place = open_checkpoint(folder).place("b.weight")
    assert place is not None
    return MappedRows("b.weight", (50, 6), request.param, *place), table


@given(ids=st.lists(st.integers(0, 49), max_size=80))
def test_rows_are_those_of_the_tensor(ids: list[int], stored: tuple[MappedRows, torch.Tensor]) -> None:
    rows, table = stored
    assert torch.equal(rows.gather(torch.tensor(ids, dtype=torch.int64)), table[ids])


def test_the_whole_matrix_in_any_dtype(stored: tuple[MappedRows, torch.Tensor]) -> None:
    rows, table = stored
    assert torch.equal(rows.whole(rows.dtype), table)
    assert rows.whole(torch.float32).dtype == torch.float32


def test_an_id_beyond_the_vocabulary_is_an_error(stored: tuple[MappedRows, torch.Tensor]) -> None:
    with pytest.raises(IndexError):
        stored[0].gather(torch.tensor([50]))


@pytest.mark.parametrize("harm", ["gone", "shorter"])
def test_a_file_that_changes_under_a_run_is_told(harm: str, tmp_path: Path) -> None:
    file = tmp_path / "rows"
    file.write_bytes(bytes(range(96)))
    rows = MappedRows("rows", (4, 12), torch.bfloat16, file)
    assert rows.gather(torch.tensor([3])).view(torch.uint8)[0, 0] == 72
    file.unlink() if harm == "gone" else file.write_bytes(bytes(95))
    with pytest.raises(CheckpointError, match="went away while it was in use"):
        rows.gather(torch.tensor([3]))


def test_a_model_in_shards_has_its_rows_in_the_right_file(tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_model)
    hf.save(
        tmp_path,
        checkpoint.config,
        ((name, checkpoint.read(name)) for name in reversed(checkpoint.names())),
        max_shard_bytes=100_000,
    )
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    rows = rows_of(tmp_path)
    assert rows is not None and torch.equal(rows.whole(torch.float32), checkpoint.read(NAME))


def test_a_part_of_a_network_looks_up_the_same_rows(tiny_model: Path) -> None:
    rows, tokens = rows_of(tiny_model), torch.tensor([5, 0, 5, 99])
    build = Build(NoQuant(), torch.float32, CPU, rows)
    mapped = build.embedding("model.embed_tokens", 300, 64)
    dense = open_checkpoint(tiny_model).read(NAME)
    assert isinstance(mapped, MappedEmbedding) and not list(mapped.parameters())
    assert torch.equal(mapped(tokens), dense[tokens])
    (slot,) = mapped.slots()
    assert slot.write is None and torch.equal(slot.read(torch.float32), dense)
    head = build.embedding("lm_head", 300, 64)
    assert not isinstance(head, MappedEmbedding), "a head is multiplied with, whole"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_found_when_the_model_is_loaded(bad: float, tiny_model: Path, tmp_path: Path) -> None:
    """Not when its token comes, hours later, as a loss that is none."""
    model, checkpoint = shutil.copytree(tiny_model, tmp_path / "model"), open_checkpoint(tiny_model)
    tensors = {name: checkpoint.read(name).clone() for name in checkpoint.names()}
    tensors[NAME][-1, 3] = bad
    save_file(tensors, model / "model.safetensors")
    assert rows_of(model) is not None
    with pytest.raises(CheckpointError, match=f"tensor '{NAME}' has 1 numbers that are NaN or infinite"):
        load(open_checkpoint(model), NoQuant(), dtype=torch.float32, device=CPU)


def test_it_stays_in_memory_where_it_must(tiny_model: Path, make_model: Callable[..., Path], tmp_path: Path) -> None:
    assert rows_of(tiny_model) is not None
    assert rows_of(tiny_model, torch.bfloat16) is None, "another dtype than the file's"
    assert rows_of(tiny_model, device=torch.device("cuda")) is None
    assert rows_of(make_model(tmp_path / "tied", tie_word_embeddings=True)) is None, "the head's matrix, too"
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    checkpoint = open_checkpoint(tiny_model)
    torch.save({name: checkpoint.read(name) for name in checkpoint.names()}, pickled / "pytorch_model.bin")
    (pickled / "config.json").write_text((tiny_model / "config.json").read_text())
    assert rows_of(pickled) is None


def test_a_shape_that_the_config_denies_is_left_to_loading(tiny_model: Path, tmp_path: Path) -> None:
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config: dict[str, Any] = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 1}))
    assert rows_of(tmp_path) is None


def test_settings_alone_say_what_the_weights_will_be(tiny_model: Path, tmp_path: Path) -> None:
    from lorikeet.checkpoints._settings import open_settings

    (tmp_path / "config.json").write_text((tiny_model / "config.json").read_text())
    checkpoint = open_settings(str(tmp_path))
    found = [mapped_embedding(checkpoint, *identify(checkpoint), dtype, CPU) for dtype in (torch.float32, torch.half)]
    assert found[0] is not None and found[0].file is None and found[1] is None
    with torch._subclasses.FakeTensorMode():
        assert found[0].gather(torch.arange(3)).shape == (3, 64)
