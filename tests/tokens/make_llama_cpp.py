"""Writes llama_cpp.json: the ids llama.cpp computes for each `tokenizer.ggml.pre`, with a small vocabulary.

Run it where llama.cpp's binding is installed (pip install cyllama gguf numpy):  python tests/tokens/make_llama_cpp.py
Its vocabulary joins across words, so a split at another place gives other ids. Kinds that this llama.cpp does not know
keep what they had.
"""

import json
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

FILE = Path(__file__).with_name("llama_cpp.json")
WIDTH = 32
LAYER = {"attn_norm": 1, "ffn_norm": 1} | dict.fromkeys(
    ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"), 2
)


def write(path: Path, vocabulary: dict, pre: str) -> None:
    """A model of zeros around the vocabulary: the binding opens no file without a whole model."""
    writer = gguf.GGUFWriter(str(path), "llama")
    sizes = {"context_length": 64, "embedding_length": WIDTH, "block_count": 1, "feed_forward_length": WIDTH}
    for key, value in (sizes | {"attention.head_count": 1, "attention.head_count_kv": 1}).items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", pre)
    tokens = vocabulary["tokens"]
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.token_type", [1] * len(tokens))
    writer.add_array("tokenizer.ggml.merges", vocabulary["merges"])
    writer.add_uint32("tokenizer.ggml.bos_token_id", 0)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 0)
    for name in ("token_embd", "output"):
        writer.add_tensor(f"{name}.weight", np.zeros((len(tokens), WIDTH), np.float32))
    writer.add_tensor("output_norm.weight", np.zeros(WIDTH, np.float32))
    for name, dimensions in LAYER.items():
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((WIDTH,) * dimensions, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(names: list[str]) -> None:
    import cyllama.llama.llama_cpp as binding

    content = json.loads(FILE.read_text(encoding="utf-8"))
    known = {name: ids for names, ids in content["ids"].items() for name in names.split()}
    for name in names or known:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            write(path, content, name)
            try:
                model = binding.LlamaModel(str(path), binding.LlamaModelParams(), verbose=False)
            except ValueError as error:
                print(f"{name}: {error}"[:100])
                continue
            vocabulary = model.get_vocab()
            found = [vocabulary.tokenize(text, False, False) for text in content["texts"]]
            known[name] = [" ".join(map(str, ids)) for ids in found]
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, ids in known.items():
        alike.setdefault(tuple(ids), []).append(name)
    content["ids"] = {
        " ".join(sorted(names)): list(ids) for ids, names in sorted(alike.items(), key=lambda kind: kind[1])
    }
    FILE.write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
