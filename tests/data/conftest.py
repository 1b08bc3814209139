"""A small byte-level BPE behind the tokenizer contract, and chat templates of the shapes models bring."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CONTROL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot|>", "<think>", "</think>"]
CORPUS = [
    "user assistant system tool Instruction Response hello how are you the answer is in the house\n\n### : \n",
    "USER: ASSISTANT: a chat between a curious user and an assistant hello hello hello world world \n\n\n",
] * 4


class TinyTokenizer:
    """Follows lorikeet.tokens._contract.Tokenizer; plain text never gives a control id."""

    def __init__(self, bos: str | None = None, eos: str | None = "</s>", chat_template: str | None = None):
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        bpe.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
        self.bpe = bpe
        first = bpe.get_vocab_size()
        self.control = {name: first + number for number, name in enumerate(CONTROL)}
        self.names = {number: name for name, number in self.control.items()}
        self.vocab_size = first + len(CONTROL)
        self.takes_before, self.takes_behind, self.divides = frozenset(), frozenset(), {}
        self.bos_token, self.eos_token, self.chat_template = bos, eos, chat_template
        self.pad_id = self.control["</s>"]
        self.fingerprint = hashlib.sha256(bpe.to_str().encode()).hexdigest()

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return () if self.eos_token is None else (self.control[self.eos_token],)

    def encode(self, text: str, *, after: str = "start") -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self.bpe.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def encode_many(self, texts: Sequence[str], *, after: str = "start") -> list[bytes]:
        return [array("i", self.encode(text, after=after)[0]).tobytes() for text in texts]

    def decode(self, ids: Sequence[int], *, skip_control: bool = True) -> str:
        out, run = [], []
        for number in [*map(int, ids), -1]:
            if number in self.names or number < 0:
                out.append(self.bpe.decode(run))
                run = []
                if number >= 0 and not skip_control:
                    out.append(self.names[number])
            else:
                run.append(number)
        return "".join(out)

    def save(self, folder: Path) -> None:
        self.bpe.save(str(folder / "tokenizer.json"))


TEMPLATES = {
    # a default system prompt, texts as they are
    "chatml": "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    # texts trimmed, BOS written by the template
    "trimmed": "{{ bos_token }}{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}",
    # no control token before a reply, EOS after a space
    "inst": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }} {{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
    # earlier thoughts are dropped, the last reply always has a thought: the prompt is no prefix of the whole
    "thinking": "{% for m in messages %}{% set c = m.content %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set t = '' %}{% if '</think>' in c %}"
    "{% set t = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.last %}<think>\n{{ t }}\n</think>\n\n{% endif %}{% endif %}{{ c }}"
    "{% if m.tool_calls %}<call>{{ m.tool_calls | tojson }}</call>{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    # tools in front, tool calls behind the text
    "tools": "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if m.tool_calls %}{% for call in m.tool_calls %}\n<call>{{ call | tojson }}</call>{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}


@pytest.fixture(scope="session")
def make_tokenizer() -> type[TinyTokenizer]:
    return TinyTokenizer


@pytest.fixture(scope="session")
def tokenizer() -> TinyTokenizer:
    return TinyTokenizer(chat_template=TEMPLATES["chatml"])


@pytest.fixture(scope="session")
def bos_tokenizer() -> TinyTokenizer:
    return TinyTokenizer(bos="<s>", chat_template=TEMPLATES["chatml"])


@pytest.fixture(scope="session")
def templates() -> dict[str, str]:
    return TEMPLATES


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"
