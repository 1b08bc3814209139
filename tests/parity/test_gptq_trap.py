"""A trap of gptqmodel's layers: which kernel computes is decided by the first forward pass, for good.

Is that one an evaluation or a reply, as where `evaluate.before` asks for one, the layer turns into an inference kernel
without gradients, and training goes on without those of the layers below. Ours makes the same gradient whatever came
before; gptqmodel's fails, where it is installed here or GPTQMODEL_PYTHON names a Python that has it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lorikeet.ops.lora_linear import lora_linear
from lorikeet.quant.gptq import Gptq

THEIRS = """
import json, sys, torch
from safetensors.torch import load_file
from gptqmodel.nn_modules.qlinear.torch_aten_kernel import TorchAtenLinear

parts = load_file(sys.argv[1])
x = parts.pop("x")
found = {}
for first in ("training", "evaluation"):
    layer = TorchAtenLinear(bits=4, group_size=32, sym=True, desc_act=False, in_features=64, out_features=64)
    for name, tensor in parts.items():
        setattr(layer, name, tensor.clone())
    layer.post_init()
    if first == "evaluation":
        with torch.no_grad():
            layer.eval()(x)
    y = layer.train()(x.clone().requires_grad_())
    found[first] = y.requires_grad
print(json.dumps(found))
"""


def _weight() -> torch.Tensor:
    return torch.randn(64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_evaluation_first_does_not_change_the_gradient(dtype: torch.dtype):
    gradients = []
    for evaluation_first in (False, True):
        weight = Gptq(bits=4, group_size=32).freeze(_weight())
        if evaluation_first:
            with torch.no_grad():
                lora_linear(torch.randn(1, 64, dtype=dtype), weight)  # one token: a reply
                lora_linear(torch.randn(40, 64, dtype=dtype), weight)
        x = torch.randn(40, 64, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
        lora_linear(x, weight).float().square().sum().backward()
        gradients.append(x.grad)
    assert gradients[0] is not None and gradients[0].abs().sum() > 0
    assert torch.equal(gradients[0], gradients[1])


@pytest.mark.slow
def test_gptqmodel_s_layer_loses_its_gradient(tmp_path: Path):
    """If this fails, the library has mended it, and the note in docs/gptq.md can go."""
    python = os.environ.get("GPTQMODEL_PYTHON")
    if python is None and importlib.util.find_spec("gptqmodel") is None:
        pytest.skip("no gptqmodel")
    parts = Gptq(bits=4, group_size=32, checkpoint_format="gptq_v2").freeze(_weight()).give(0, 64)
    assert parts is not None
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    save_file(parts | {"x": x, "scales": parts["scales"].bfloat16()}, tmp_path / "parts.safetensors")
    command = [python or sys.executable, "-c", THEIRS, str(tmp_path / "parts.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.strip().splitlines()[-1]) == {"training": True, "evaluation": False}
