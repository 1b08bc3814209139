"""No quantisation: the weight is kept dense, in the model's own dtype."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from lorikeet.quant._contract import FrozenWeight, Quant


class NoQuant(Quant):
    """Weights stay as they are: dense in `model.dtype`, or as a quantised model stores them."""

    kind: Literal["none"] = "none"
    dequantize: bool = Field(
        False, description="Make a model that is stored quantised dense while it is read: more memory, faster steps."
    )

    @property
    def remark(self) -> str:
        """See `Quant.remark`."""
        return ""

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        """Recipes and adapters of runs that were made before `dequantize` had this name go on being read."""
        if isinstance(values, dict) and "dequantise" in values and "dequantize" not in values:
            return {"dequantize" if name == "dequantise" else name: value for name, value in values.items()}
        return values

    def empty(self, out_features: int, in_features: int, dtype: torch.dtype, device: torch.device) -> FrozenWeight:
        return DenseWeight(torch.empty(out_features, in_features, dtype=dtype, device=device))


class DenseWeight(FrozenWeight):
    """[out, in] as it is."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)

    @torch.no_grad()
    def write(self, start: int, weight: Tensor) -> None:
        self.weight[start : start + len(weight)].copy_(weight)

    def dense(self, dtype: torch.dtype) -> Tensor:
        return self.weight.to(dtype)

    def rows(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        return self.weight[start:stop].to(dtype)
