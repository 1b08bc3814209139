"""gptqmodel, in a virtual environment of its own: quantises a folder, or says what the model in one answers.

python gptqmodel_run.py quantise FOLDER rows.json OUT 128
python gptqmodel_run.py logits FOLDER rows.json OUT.safetensors gptqmodel|transformers
"""

import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file


def quantise(folder: str, rows: str, out: str, group_size: str) -> None:
    from gptqmodel import GPTQModel, QuantizeConfig

    calibration = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in json.loads(Path(rows).read_text())]
    model = GPTQModel.load(folder, QuantizeConfig(bits=4, group_size=int(group_size), device="cpu"))
    start = time.perf_counter()
    model.quantize(calibration, batch_size=1)
    seconds = time.perf_counter() - start
    model.save(out)
    print(json.dumps({"seconds": seconds}))


def logits(folder: str, rows: str, out: str, reader: str) -> None:
    """The last logits of each row."""
    if reader == "gptqmodel":
        from gptqmodel import BACKEND, GPTQModel

        model = GPTQModel.load(folder, device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.bfloat16).model
    else:
        from transformers import AutoModelForCausalLM, GPTQConfig

        settings = GPTQConfig(bits=4, backend="gptq_torch")
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, dtype=torch.bfloat16)
    model.eval()
    found = {}
    with torch.no_grad():
        for i, ids in enumerate(json.loads(Path(rows).read_text())):
            found[str(i)] = model(input_ids=torch.tensor([ids])).logits[0, -1].float()
    save_file(found, out)
    print(json.dumps({"class": type(model.model.layers[0].mlp.down_proj).__name__}))


if __name__ == "__main__":
    {"quantise": quantise, "logits": logits}[sys.argv[1]](*sys.argv[2:])
