"""Makes a checkpoint for gpt.py: random weights, and the tokenizer of another model.

python examples/own_model/make.py TOKENIZER_OF FOLDER
"""

import sys
from pathlib import Path

import torch
from gpt import Gpt

from lorikeet.checkpoints.download import resolve
from lorikeet.checkpoints.hf import save
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.tokens.open import open_tokenizer

source, folder = resolve(sys.argv[1]), Path(sys.argv[2])
tokenizer = open_tokenizer(source, open_checkpoint(source))
config = {
    "model_type": "my-gpt",
    "vocab_size": tokenizer.vocab_size,
    "width": 64,
    "heads": 4,
    "layers": 2,
    "context": 512,
}
torch.manual_seed(0)
folder.mkdir(parents=True)
save(folder, config, Gpt(config).state_dict().items())
tokenizer.save(folder)
print(f"{folder}: {sum(p.numel() for p in Gpt(config).parameters()):,} parameters")
