"""The golden run's inputs: 80 short conversations in ids, and an adapter whose B is not zero; both from seeds.

B zero (LoRA's usual start) would hide errors in A's gradient during the first steps. As a script, this writes what
another trainer needs to do the same 20 steps, into FOLDER: `base/` (the model as a Hugging Face folder in float32) and
`adapter/` (PEFT's layout):

    python tests/golden/smollm2_case.py FOLDER

The ids are committed (`smollm2_examples.jsonl`), so that they stay what they are when templates or tokenizers change;
where the file is missing, the script makes it anew.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

from lorikeet.adapters._storage import save_adapter
from lorikeet.adapters.lora import Lora
from lorikeet.base.nouns import Conversation, Example, Message
from lorikeet.base.rng import numpy_rng
from lorikeet.checkpoints import hf
from lorikeet.checkpoints.download import resolve
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.data.encode import encode_conversation
from lorikeet.data.loss import LossOptions
from lorikeet.data.templates.jinja import Jinja
from lorikeet.models.causal_lm import CausalLM
from lorikeet.models.load import load
from lorikeet.quant.none import NoQuant
from lorikeet.tokens._contract import Tokenizer
from lorikeet.tokens.open import open_tokenizer

FILE = Path(__file__).with_name("smollm2_examples.jsonl")
MODEL, STEPS, EXAMPLES_PER_STEP, SEED = "smollm2-135m", 20, 4, 7
ADAPTER = Lora(r=8, lora_alpha=16)
MOST_TOKENS = 96

SUBJECTS = ("the copper kettle", "a paper map", "the night train", "our ladder", "that grey parrot", "the third window")
ASKS = (
    ("What is {a} plus {b}?", "{sum}"),
    ("Say {x} in capitals.", "{X}"),
    ("How many letters has “{x}”?", "It has {letters} letters, spaces left out."),
    ("Count from {a} to {c}.", "{count}."),
    ("Is {a} larger than {b}?", "{larger}, {a} is {than} than {b}."),
    ("Réponds en français: {a} et {b}, ça fait combien ?", "Ça fait {sum}, bien sûr."),
)


def model() -> tuple[CausalLM, Tokenizer, str]:
    """(SmolLM2 in float32, its tokenizer, the weights' fingerprint)."""
    path = resolve(MODEL)
    checkpoint = open_checkpoint(path)
    network = load(checkpoint, NoQuant(), dtype=torch.float32, device=torch.device("cpu"))
    return network, open_tokenizer(path, checkpoint), checkpoint.fingerprint()


def attach(network: CausalLM) -> str:
    """Attach the golden adapter; returns a hash of its tensors."""
    ADAPTER.attach(network, seed=SEED)
    digest = hashlib.sha256()
    for name, parameter in sorted(ADAPTER.parameters(network).items()):
        if ".lora_B." in name:
            values = numpy_rng(SEED, "golden", name).uniform(-0.01, 0.01, tuple(parameter.shape)).astype(np.float32)
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(values))
        digest.update(name.encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def examples() -> list[Example]:
    """The committed conversations, in the order in which they are trained."""
    found = []
    for line in FILE.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        weights = np.zeros(len(row["tokens"]), np.float32)
        for start, end in row["trained"]:
            weights[start:end] = 1
        found.append(Example(np.array(row["tokens"], np.int32), weights))
    return found


def examples_hash() -> str:
    """Of the committed file."""
    return hashlib.sha256(FILE.read_bytes()).hexdigest()


def _conversation(index: int) -> Conversation:
    """One to three turns with answers of very different lengths: a mean of means would show."""
    rng, messages = numpy_rng(SEED, "conversation", index), []
    for _ in range(1 + index % 3):
        ask, answer = ASKS[rng.integers(len(ASKS))]
        a, b, x = int(rng.integers(2, 60)), int(rng.integers(2, 60)), SUBJECTS[rng.integers(len(SUBJECTS))]
        words = {
            "a": a, "b": b, "c": a + 7, "x": x, "X": x.upper(), "sum": a + b, "letters": len(x.replace(" ", "")),
            "count": ", ".join(str(n) for n in range(a, a + 8)), "larger": "Yes" if a > b else "No",
            "than": "larger" if a > b else "not larger",
        }  # fmt: skip
        messages += [Message("user", ask.format(**words)), Message("assistant", answer.format(**words))]
    return Conversation(tuple(messages))


def _write_examples(tokenizer: Tokenizer) -> None:
    template, rows, index = Jinja.model_validate({}).bind(tokenizer), [], 0
    while len(rows) < STEPS * EXAMPLES_PER_STEP:
        ((_, tokens, weights),) = encode_conversation(_conversation(index), template, tokenizer, LossOptions())
        index += 1
        if len(tokens) > MOST_TOKENS:
            continue
        edges = np.flatnonzero(np.diff(np.concatenate([[0], weights > 0, [0]]))).reshape(-1, 2)
        rows.append(json.dumps({"tokens": tokens.tolist(), "trained": edges.tolist()}))
    FILE.write_text("\n".join(rows) + "\n", encoding="utf-8")


def main(folder: Path) -> None:
    """Write base/, adapter/ and hashes.json into `folder`."""
    network, tokenizer, fingerprint = model()
    if not FILE.exists():
        _write_examples(tokenizer)
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir(parents=True)
    adapter.mkdir()
    hf.save(base, network.shape.config | {"dtype": "float32"}, network.tensors())
    tokenizer.save(base)
    adapter_hash = attach(network)
    save_adapter(adapter, ADAPTER, network, {"base": str(base)})
    hashes = {"base": fingerprint, "adapter": adapter_hash, "examples": examples_hash()}
    (folder / "hashes.json").write_text(json.dumps(hashes, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
