"""A tokenizer of 97 tokens, as small as the networks that are written into GGUF files."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer_of(folder: Path, size: int = 97) -> None:
    """Write one into `folder`: single bytes (as many as there is room for), one pair, and three control
    tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: size - len(CONTROL) - 1]
    vocab = {text: id for id, text in enumerate([*letters, "ab"])}
    bpe = Tokenizer(models.BPE(vocab, [("a", "b")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in CONTROL])
    bpe.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": False}))
