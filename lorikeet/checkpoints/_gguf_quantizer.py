"""llama.cpp's own quantizer, for the types that the `gguf` package cannot encode: k-quants and i-quants."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gguf.constants import LlamaFileType

from lorikeet.base.errors import CheckpointError, RecipeError, nearest
from lorikeet.base.extras import require
from lorikeet.base.log import note
from lorikeet.checkpoints._gguf_file import TYPES

_PREFIX = "MOSTLY_"
_NEED_MORE = ("IQ1", "IQ2", "IQ3_XXS", "IQ3_XS", "Q2_K_S")  # made with measured activations only
_OTHERS = {
    kind.name.removeprefix(_PREFIX).lower(): int(kind)
    for kind in LlamaFileType
    if kind.name.startswith((f"{_PREFIX}Q", f"{_PREFIX}IQ"))
    and not kind.name.removeprefix(_PREFIX).startswith(_NEED_MORE)
}
_ERROR = 4  # ggml.h's level
_OTHERWISE = re.compile(r"(\d+) of (\d+) tensor\(s\) required fallback")
QUANTIZED = {name: number for name, number in _OTHERS.items() if name not in TYPES}


def check_type(name: str) -> None:
    """Raise RecipeError for a type that does not exist, MissingExtra for one that needs llama.cpp's quantizer where
    that is not installed."""
    if name in TYPES:
        return
    if name not in QUANTIZED:
        raise RecipeError(
            f"--type: there is no '{name}'",
            given=name,
            allowed=f"{' '.join(TYPES)}; with llama-cpp-python {' '.join(QUANTIZED)}",
            try_=f"--type {nearest(name, [*TYPES, *QUANTIZED]) or 'q8_0'}",
        )
    _library(name)


def quantize_file(source: Path, target: Path, name: str) -> None:
    """Write `target` from the file `source` of f16 or f32. Raises CheckpointError where llama.cpp will not."""
    library = _library(name)
    parameters = library.llama_model_quantize_default_params()
    parameters.ftype = QUANTIZED[name]
    parameters.nthread = torch.get_num_threads()
    with _listening(library) as said:
        code = library.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    if code != 0:
        failed = [text.strip() for level, text in said if level == _ERROR and text.strip()]
        raise CheckpointError(
            f"llama.cpp's quantizer did not make {name} of this model",
            given=failed[-1][:200] if failed else f"code {code}",
            try_="--type q8_0",
        )
    other = next(filter(None, (_OTHERWISE.search(text) for _, text in said)), None)
    if other is not None:
        note(f"{other[1]} of {other[2]} tensors have rows that {name} does not divide: they are kept in a finer type")


@contextmanager
def _listening(library: Any) -> Iterator[list[tuple[int, str]]]:
    """What llama.cpp says, as (level, text), instead of on standard error: a quantizer has several lines a tensor."""
    said: list[tuple[int, str]] = []
    callback = library.llama_log_callback(lambda level, text, _: said.append((level, text.decode(errors="replace"))))
    before = getattr(getattr(library, "_logger", None), "llama_log_callback", None)  # llama-cpp-python's own
    library.llama_log_set(callback, None)
    try:
        yield said
    finally:
        library.llama_log_set(before or library.llama_log_callback(), None)


def _library(name: str) -> Any:
    return require("llama_cpp", extra="llama-cpp", needed_by=f"--type {name}")
