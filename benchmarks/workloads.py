"""The work that every measurement does: W1 to W4, as rows of messages, a recipe for Lorikeet, and model folders.

    python benchmarks/workloads.py --data alpaca_en_demo.json [W1 ...] [--folder runs/bench]

writes W1.jsonl, W1.yaml and so on. The rows come from one alpaca file (instruction, input, output):

    W1  SmolLM2-135M, its first 256 rows, at most 512 tokens, 16 conversations a step
    W2  SmolLM2-135M, 32 conversations of consecutive rows joined as turns up to 4,096 tokens, 8 a step
    W3  W1's rows on Gemma 3 270M (a base model, so the `gemma` template is named)
    W4  a Llama of TinyLlama's sizes (1.1 billion random weights): 4 steps of one conversation of 2,048 tokens

All train LoRA (r 8, alpha 16, no dropout, all linears) in bfloat16 with AdamW at 2e-4, the loss on replies. Model
folders (Hugging Face layout, bfloat16) are made for tools that read nothing else; W4's is the only one that Lorikeet
needs, too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from lorikeet import config
from lorikeet.api import open_base
from lorikeet.base.nouns import Conversation, Message
from lorikeet.base.rng import derive
from lorikeet.checkpoints import hf
from lorikeet.data.encode import encode_conversation
from lorikeet.models.load import ModelOptions
from lorikeet.quant.none import NoQuant

Row = dict[str, list[dict[str, str]]]  # {"messages": [{"role", "content"}, ...]}
FOLDER = Path(__file__).parents[1] / "runs" / "bench"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TINYLLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632,
    "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "torch_dtype": "bfloat16",
    "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """What is trained on what; `joined`: conversations are made of so many rows as fit, not of one."""

    name: str
    model: str  # an alias, or "tinyllama" for random weights
    conversations: int
    max_length: int
    examples_per_step: int
    joined: bool = False
    cut: bool = False  # joined conversations go past max_length and are cut there: each has exactly so many tokens
    template: str = "jinja"

    @property
    def steps(self) -> int:
        """Of one epoch."""
        return -(-self.conversations // self.examples_per_step)


WORKLOADS = {
    one.name: one
    for one in (
        Workload("W1", "smollm2-135m", 256, 512, 16),
        Workload("W2", "smollm2-135m", 32, 4096, 8, joined=True),
        Workload("W3", "gemma3-270m", 256, 512, 16, template="gemma"),
        Workload("W4", "tinyllama", 4, 2048, 1, joined=True, cut=True),
    )
}


def pairs_of(file: Path) -> list[tuple[str, str]]:
    """(prompt, reply) of each alpaca row: the instruction, then a line end and the input where there is one."""
    rows = json.loads(file.read_text(encoding="utf-8"))
    return [("\n".join(part for part in (row["instruction"], row.get("input")) if part), row["output"]) for row in rows]


def conversation(pairs: Sequence[tuple[str, str]]) -> Row:
    """The pairs as turns of one conversation."""
    turns = [[{"role": "user", "content": ask}, {"role": "assistant", "content": reply}] for ask, reply in pairs]
    return {"messages": [message for turn in turns for message in turn]}


def join(
    pairs: Sequence[tuple[str, str]], count: int, limit: int, length: Callable[[Row], int], *, past: bool = False
) -> list[Row]:
    """`count` conversations of consecutive pairs: as many as fit into `limit` tokens, or, with `past`, one more.

    A pair that is longer than `limit` alone is left out. Raises ValueError where the pairs do not suffice."""
    found: list[Row] = []
    open_: list[tuple[str, str]] = []
    for pair in pairs:
        if len(found) == count:
            return found
        if length(conversation([*open_, pair])) <= limit:
            open_.append(pair)
        elif past:
            found.append(conversation([*open_, pair]))
            open_ = []
        else:
            found += [conversation(open_)] if open_ else []
            open_ = [pair] if length(conversation([pair])) <= limit else []
    if len(found) < count:
        raise ValueError(f"{len(pairs)} pairs make {len(found)} conversations of {limit} tokens, {count} are needed")
    return found


def write_rows(work: Workload, source: Path, folder: Path = FOLDER) -> Path:
    """The workload's rows from the alpaca file `source`, as `folder`/NAME.jsonl."""
    pairs = pairs_of(source)
    if work.joined:
        rows = join(pairs, work.conversations, work.max_length, _counter(work, source, folder), past=work.cut)
    else:
        rows = [conversation([pair]) for pair in pairs[: work.conversations]]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{work.name}.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def _counter(work: Workload, source: Path, folder: Path) -> Callable[[Row], int]:
    """How many tokens a conversation has with the workload's model and template."""
    options = config.parse(recipe(work, source, model_path(work, folder, source)))
    base = open_base(options.model)
    template = options.data.template.bind(base.tokenizer)

    def length(row: Row) -> int:
        messages = tuple(Message(message["role"], message["content"]) for message in row["messages"])
        return max(len(ids) for _, ids, _ in encode_conversation(Conversation(messages), template, base.tokenizer,
                                                                 options.data))  # fmt: skip

    return length


def recipe(work: Workload, data: Path, model: str, *, threads: int | None = None, **train: Any) -> dict[str, Any]:
    """A recipe of the workload. `model` is what a recipe's model.path can be; `train` adds to that section."""
    options = {"examples_per_step": work.examples_per_step, "learning_rate": 2e-4, "lr_scheduler_type": "constant"}
    return {
        "output_dir": f"runs/{work.name}",
        "model": {"path": model, "dtype": "bfloat16"} | ({} if threads is None else {"threads": threads}),
        "adapter": {"kind": "lora", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
        "data": {"train": [str(data)], "max_length": work.max_length, "template": work.template}
        | ({"truncation": "cut"} if work.cut else {}),
        "train": options | train,
    }


def model_path(work: Workload, folder: Path, source: Path) -> str:
    """What the recipe names: the alias, or the folder of random weights, made at first use."""
    if work.model != "tinyllama":
        return work.model
    made = folder / "tinyllama"
    if not (made / "tokenizer.json").exists():
        write_tinyllama(made, source)
    return str(made)


def model_folder(work: Workload, folder: Path, source: Path) -> Path:
    """The same model as a Hugging Face folder in bfloat16, made at first use: what other tools read."""
    if work.model == "tinyllama":
        return Path(model_path(work, folder, source))
    made = folder / work.model
    if not (made / "tokenizer.json").exists():
        base = open_base(ModelOptions(path=work.model, dtype="bfloat16"))
        network = base.load(NoQuant())
        made.mkdir(parents=True, exist_ok=True)
        hf.save(made, network.shape.config | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}, network.tensors())
        base.tokenizer.save(made)
    return made


def write_tinyllama(folder: Path, source: Path, sizes: dict[str, Any] = TINYLLAMA) -> None:
    """A Llama of these sizes with normal random weights (deviation 0.02, a seed of its own for each tensor) and a
    tokenizer made from the alpaca file: its ids are real text's, fewer than the vocabulary has room for."""
    folder.mkdir(parents=True, exist_ok=True)
    hf.save(folder, sizes, _random_weights(sizes))
    write_tokenizer(folder, (side for pair in pairs_of(source) for side in pair))


def llama_shapes(sizes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of a Llama's checkpoint, from its config.json."""
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    keys = width // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (sizes["vocab_size"], width)}
    for layer in range(sizes["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": shape for name, shape in (
            ("q", (width, width)), ("k", (keys, width)), ("v", (keys, width)), ("o", (width, width)))}  # fmt: skip
        shapes |= {f"{at}.mlp.{name}_proj.weight": shape for name, shape in (
            ("gate", (inner, width)), ("up", (inner, width)), ("down", (width, inner)))}  # fmt: skip
        shapes |= {f"{at}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (width,), "lm_head.weight": (sizes["vocab_size"], width)}


def _random_weights(sizes: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, shape in llama_shapes(sizes).items():
        if len(shape) == 1:
            yield name, torch.ones(shape, dtype=torch.bfloat16)
        else:
            generator = torch.Generator().manual_seed(derive(0, "tinyllama", name))
            yield name, torch.randn(shape, generator=generator).mul_(0.02).bfloat16()


def write_tokenizer(folder: Path, texts: Iterable[str], vocabulary: int = 8192, context: int = 2048) -> None:
    """A byte-level BPE with ChatML's control tokens and template, made from `texts`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True) for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    bpe.train_from_iterator(texts, trainer)
    bpe.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>", "chat_template": CHATML, "model_max_length": context}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="W1", help="default: all")
    parser.add_argument("--data", type=Path, required=True, help="alpaca rows: alpaca_en_demo.json")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where rows, recipes and models go")
    asked = parser.parse_args()
    for name in asked.workloads or WORKLOADS:
        work = WORKLOADS[name]
        rows = write_rows(work, asked.data, asked.folder)
        made = recipe(work, rows.resolve(), model_path(work, asked.folder, asked.data))
        rows.with_suffix(".yaml").write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
        print(f"{rows.with_suffix('.yaml')}: {work.conversations} conversations, {work.steps} steps")


if __name__ == "__main__":
    main()
