"""`lorikeet doctor` as a command: what it prints, and as JSON."""

from __future__ import annotations

import json

from e2e.conftest import Place


def test_doctor_fits_eighty_columns(place: Place, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("COLUMNS", "80")
    out = place.ok("doctor").out
    assert max(len(line) for line in out.splitlines()) <= 80
    for word in ("cpu", "cores", "memory", "float32", "bfloat16", "TFLOP/s", "cache", "torch", "parquet"):
        assert word in out
    assert not (place.folder / "runs").exists()  # looking makes nothing


def test_doctor_json(place: Place) -> None:
    found = json.loads(place.ok("doctor", "--json", "--output", "some/where").out)
    assert found["disk"]["output"]["folder"] == "some/where"
    assert found["memory"]["total_bytes"] > 1 << 28
    assert isinstance(found["advice"], list)


def test_doctor_refuses_an_unknown_flag(place: Place) -> None:
    assert place.run("doctor", "--fix").code == 2


def test_recommended_models_fit_eighty_columns(place: Place, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("COLUMNS", "80")
    out = place.ok("models", "--recommended").out
    assert max(len(line) for line in out.splitlines()) <= 80
    assert "smollm2-135m" in out and "QLoRA" in out
    listed = json.loads(place.ok("models", "--recommended", "--json").out)
    assert {"model", "weights", "family", "8 GiB"} <= set(listed[0])


def test_recommended_models_take_no_name(place: Place) -> None:
    place.refused("models tiny --recommended", "RecipeError: --recommended: lists models and takes no name", "tiny")
