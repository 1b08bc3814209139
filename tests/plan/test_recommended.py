"""The table of recommended models: its sizes add up to what was published, and the page shows what is computed."""

from __future__ import annotations

import pytest

from contract.source import REPOSITORY
from lorikeet.base.kinds import kinds
from lorikeet.plan.memory import GIB
from lorikeet.plan.recommended import MEMORIES, USED, Recommended, markdown, recommended

MODELS = recommended()


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_sizes_add_up_to_the_published_weights(model: Recommended) -> None:
    assert model.sizes.parameters / 1e9 == pytest.approx(model.weights, rel=0.006)


def test_every_family_of_the_table_can_be_loaded() -> None:
    assert {model.family for model in MODELS} <= set(kinds("lorikeet.models.families"))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_what_fits_less_memory_fits_more(model: Recommended) -> None:
    ranks = ("LoRA", "LoRA, ckpt", "QLoRA", "-")
    found = [ranks.index(model.method(gib)) for gib in MEMORIES]
    assert found == sorted(found, reverse=True)
    if model.method(8) == "LoRA":
        assert model.memory(checkpointing=False).total <= 8 * GIB * USED


def test_4_bits_are_for_what_does_not_fit_otherwise() -> None:
    said = {model.name: model.method(8) for model in MODELS}
    assert (
        said["mistralai/Mistral-7B-Instruct-v0.3"] == "QLoRA" and said["HuggingFaceTB/SmolLM2-135M-Instruct"] == "LoRA"
    )


def test_the_page_shows_the_table() -> None:
    page = (REPOSITORY / "docs" / "models.md").read_text(encoding="utf-8")
    assert markdown() in page, 'run: python -c "from lorikeet.plan.recommended import markdown; print(markdown())"'
