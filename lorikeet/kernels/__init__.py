"""Kernels for the CPU in C++: what PyTorch computes in many passes over memory, in one.

Each `.cpp` has a face of the same name in Python, which allocates with torch and calls. Every op has a plain PyTorch
version too, which computes where there is no compiler, on other devices and in other dtypes. Tensors without numbers
(fake, meta) go through the same faces and skip the call, so that planning sees the same allocations.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Literal, Union

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from lorikeet.kernels import build

Kernels = Literal["auto", "eager"]
Argument = Union[Tensor, "ctypes.Array[Any]", int, float, None]
DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # the number is the C++ side's
_chosen: list[Kernels] = ["auto"]


def choose(kernels: Kernels) -> None:
    """`eager`: compute everything with plain PyTorch; `auto`: with compiled kernels where they serve."""
    _chosen[0] = kernels


def chosen() -> Kernels:
    return _chosen[0]


def identity() -> str:
    """What computes, for a run's identity: `eager`, or the compiled kernels' fingerprint."""
    return "eager" if _chosen[0] == "eager" or build.build() is None else f"compiled {build.fingerprint()}"


def serves(*tensors: Tensor) -> bool:
    """Whether compiled kernels take these: on the CPU, all of one dtype that the kernels know."""
    if _chosen[0] == "eager" or build.build() is None:
        return False
    first = tensors[0]
    return first.dtype in DTYPES and all(
        tensor.device.type in ("cpu", "meta") and tensor.dtype == first.dtype for tensor in tensors
    )


def has_numbers(tensor: Tensor) -> bool:
    return not (isinstance(tensor, FakeTensor) or tensor.is_meta)


class Kernel:
    """One C++ function. Arguments: tensors and arrays of ctypes (as pointers, None as null), ints (int64_t), floats
    (float), in the order of the C++ declaration. Tensors must be contiguous where the function takes no strides."""

    def __init__(self, library: str, function: str):
        self.library, self.function = library, function
        self._call: Callable[..., object] | None = None

    def __call__(self, *arguments: Argument) -> None:
        first = next(argument for argument in arguments if isinstance(argument, Tensor))
        if not has_numbers(first):
            return
        call = self._call or self._bind(arguments)
        call(*[argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments])

    def _bind(self, arguments: Sequence[Argument]) -> Callable[..., object]:
        library = build.load(self.library)
        assert library is not None, "ask serves() first"
        function = getattr(library, self.function)
        function.restype, function.argtypes = None, [_type(argument) for argument in arguments]
        self._call = function
        return function


def _type(value: Argument) -> type:
    if isinstance(value, (Tensor, ctypes.Array)) or value is None:
        return ctypes.c_void_p
    return ctypes.c_float if isinstance(value, float) else ctypes.c_int64
