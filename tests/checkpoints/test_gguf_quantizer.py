"""llama.cpp's quantizer: asked quietly, its refusals and its exceptions said."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorikeet.base.errors import CheckpointError, RecipeError
from lorikeet.checkpoints import _gguf_quantizer as quantizer
from lorikeet.checkpoints.open import open_checkpoint

CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class Parameters(ctypes.Structure):
    _fields_ = [("nthread", ctypes.c_int32), ("ftype", ctypes.c_int)]


class Library:
    """llama-cpp-python, as far as it is asked."""

    llama_log_callback = CALLBACK
    llama_model_quantize_default_params = Parameters

    def __init__(self, code: int, *lines: tuple[int, bytes]):
        self.code, self.lines = code, lines
        self._logger = SimpleNamespace(llama_log_callback=CALLBACK(lambda *_: None))
        self.listens: Any = self._logger.llama_log_callback

    def llama_log_set(self, callback: Any, _: object) -> None:
        self.listens = callback

    def llama_model_quantize(self, *_: object) -> int:
        for level, text in self.lines:
            self.listens(level, text, None)
        return self.code


def test_types_that_need_measured_activations_do_not_exist() -> None:
    """llama.cpp would refuse them when the file of f16 is written already."""
    for name in ("iq1_s", "iq2_m", "iq3_xxs", "iq3_xs", "q2_k_s"):
        with pytest.raises(RecipeError, match="there is no"):
            quantizer.check_type(name)
    assert {"q2_k", "q4_k_m", "iq3_s", "iq4_xs"} <= set(quantizer.QUANTIZED)


def test_a_refusal_is_said_in_its_own_words(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    library = Library(1, (2, b"loading\n"), (4, b"failed to quantize: unknown model architecture\n"))
    monkeypatch.setattr(quantizer, "require", lambda *_, **__: library)
    with pytest.raises(CheckpointError) as caught:
        quantizer.quantize_file(Path("a"), Path("b"), "q4_k_m")
    assert "unknown model architecture" in str(caught.value.given)
    assert capfd.readouterr().err == "" and library.listens is library._logger.llama_log_callback


def test_tensors_that_are_kept_in_another_type_are_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (3, b"ncols 576 not divisible by 256\n"), (3, b"WARNING: 180 of 272 tensor(s) required fallback\n")
    monkeypatch.setattr(quantizer, "require", lambda *_, **__: Library(0, *lines))
    quantizer.quantize_file(Path("a"), Path("b"), "q4_k_m")
    assert "180 of 272 tensors" in capsys.readouterr().err


def test_a_file_of_k_quants_is_read_again(make_model: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from lorikeet.api.exporting import export_gguf

    folder = make_model(tmp_path / "model", intermediate_size=256)
    export_gguf(folder, tmp_path / "model.gguf", type="q4_k_m")
    file = open_checkpoint(tmp_path / "model.gguf")
    assert file.config["general.file_type"] == quantizer.QUANTIZED["q4_k_m"]
    assert {file.stored(f"blk.{layer}.ffn_down.weight") for layer in (0, 1)} <= {"Q4_K", "Q6_K"}  # 256 in a row
    assert file.stored("blk.0.attn_q.weight") == "Q5_0"  # 64
    assert [one.name for one in tmp_path.iterdir() if ".f16" in one.name] == []
