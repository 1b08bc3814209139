"""Requests that come while others are answered get transformers' greedy replies, id for id, in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lorikeet import api
from lorikeet.infer.batch import Batch
from lorikeet.infer.engine import Request
from lorikeet.infer.sampling import GenerateOptions

transformers = pytest.importorskip("transformers")
NEW = 12


@pytest.mark.parametrize("source", ["native", "transformers"])
def test_replies_in_company_equal_transformers_greedy_ones(source: str, tiny_model: Path) -> None:
    """Prompts of one to 300 tokens, some of which begin alike, in pieces, over pages that were used before."""
    engine = api.engine(tiny_model, {"dtype": "float32", "source": source})
    engine.stop_ids = ()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    theirs.generation_config.eos_token_id = None
    rng = np.random.default_rng(0)
    start = rng.integers(0, 290, 80).tolist()
    prompts = [rng.integers(0, 290, size).tolist() for size in (1, 7, 300, 64)]
    prompts += [[*start, *rng.integers(0, 290, size).tolist()] for size in (3, 40, 1)]
    batch, found, waiting = Batch(engine, rows=3, cache_tokens=1024, prefill_tokens=512), dict[int, list[int]](), 0
    while batch.busy or waiting < len(prompts):
        if waiting < len(prompts) and batch.free:
            batch.add(Request(waiting, prompts[waiting], GenerateOptions(max_new_tokens=NEW)))
            waiting += 1
        for event in batch.step():
            found.setdefault(event.name, []).extend(event.ids)
    batch.close()
    assert batch.reused_tokens >= 64
    for i, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            expected = theirs.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW, pad_token_id=0
            )
        assert found[i] == expected[0, len(prompt) :].tolist(), i
