"""Control tokens that take the white space beside them (`lstrip`, `rstrip`), as Phi-3's and Phi-4's do: our ids of a
conversation are those of transformers' `apply_chat_template`, which tokenizes the whole text at once."""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from lorikeet.base.nouns import Conversation, Message, Origin
from lorikeet.data.encode import encode_conversation, encode_prompt
from lorikeet.data.ledger import line_of
from lorikeet.data.loss import LossOptions
from lorikeet.data.provenance import spelled
from lorikeet.data.shapes import Plans, fill, texts
from lorikeet.data.templates.jinja import Jinja
from lorikeet.data.templates.phi3 import Phi3
from lorikeet.data.truncate import Encoder
from lorikeet.data.walk import Walked
from lorikeet.tokens import huggingface
from lorikeet.tokens._contract import WHITE
from lorikeet.tokens._spelling import byte_letters
from lorikeet.verify.template import TheirTemplate, compare_all, prompt_fault, table

ROLES = ["<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>"]
TEMPLATE = (  # Phi-3.5's, and tools as Phi-4-mini has them
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content']}}"
    "{% if tools %}{{'<|tool|>' + (tools | tojson) + '<|end|>\n'}}{% else %}{{'<|end|>\n'}}{% endif %}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
    "{% else %}{{ eos_token }}{% endif %}"
)
LETTERS = [chr(code) for code in range(33, 127)] + ["▁"]
MERGES = ["h e", "l l", "he ll", "hell o", "▁ hello", "▁ t", "▁t o", "▁ ▁", "i t"]
KINDS = ["llama", "first", "byte-level"]
FLAGS = list(itertools.product([False, True], repeat=2))
TOOLS = ({"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}},)


def backend(kind: str) -> Backend:
    """Sentencepiece's kind with byte fallback, a ▁ before each text or before the first; or bytes."""
    if kind == "byte-level":
        letters = [*byte_letters(), "Ġh", "he", "ll", "Ċ" + "Ċ"]
        vocab = {letter: id for id, letter in enumerate(letters)}
        made = Backend(models.BPE(vocab, [("Ġ", "h"), ("h", "e"), ("l", "l"), ("Ċ", "Ċ")]))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        return made
    merges = [(left, right) for left, right in (merge.split() for merge in MERGES)]
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS, *("".join(pair) for pair in merges)]
    vocab = {token: id for id, token in enumerate(dict.fromkeys(tokens))}
    made = Backend(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if kind == "llama":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    return made


@cache
def folder(root: Path, kind: str, lstrip: bool, rstrip: bool) -> Path:
    made = backend(kind)
    plain = [AddedToken(name, special=True, normalized=False) for name in ("<s>", "<|endoftext|>")]
    strips = [AddedToken(name, special=True, normalized=False, lstrip=lstrip, rstrip=rstrip) for name in ROLES]
    made.add_special_tokens([*plain, *strips])
    made.add_tokens([AddedToken("</s>", rstrip=rstrip, normalized=False)])  # as in Phi-3: not special, and it strips
    path = root / f"{kind}-{lstrip}-{rstrip}"
    path.mkdir()
    made.save(str(path / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "chat_template": TEMPLATE, **names}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stripping")


both = pytest.mark.parametrize(("lstrip", "rstrip"), FLAGS)
each = pytest.mark.parametrize("kind", KINDS)


def talk(*texts: str, system: str | None = None, tools: tuple[dict[str, Any], ...] = ()) -> Conversation:
    messages = [Message(("user", "assistant")[at % 2], text) for at, text in enumerate(texts)]
    first = [] if system is None else [Message("system", system)]
    return Conversation((*first, *messages), tools, origin=Origin("rows.jsonl", 0, 1))


TALKS = {
    "one": talk("hello", "it"),
    "turns": talk("hello it", "to", "hello", "it\n\nhello"),
    "system": talk("hello", "it", system="hello to"),
    "spaces in front": talk("  hello", "it", "\n\n hello", "to", system=" \n it"),
    "spaces behind": talk("hello  ", "it", "hello \n", "to", system="it \t"),
    "no-break spaces": talk("\u00a0\u3000hello\u2003", "it"),
    "no white space": talk("\u200b\x1chello\x1d", "it"),  # Python strips \x1c, the tokenizers package does not
    "spaces alone": talk(" \n ", "it"),
    "a token's name": talk("hello", "to it", "it </s>  \n hello", "it"),
    "tools": talk("hello", "it", system="hello", tools=TOOLS),
}


def theirs(path: Path, conversation: Conversation, reply: bool) -> list[int]:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    messages = [{"role": message.role, "content": message.content} for message in conversation.messages]
    ids: list[int] = tokenizer.apply_chat_template(
        messages, tools=list(conversation.tools) or None, add_generation_prompt=reply, tokenize=True, return_dict=False
    )
    return ids


@both
@each
@pytest.mark.parametrize("name", TALKS)
def test_ids_are_those_of_the_whole_text(root: Path, kind: str, lstrip: bool, rstrip: bool, name: str) -> None:
    path, conversation = folder(root, kind, lstrip, rstrip), TALKS[name]
    own = huggingface.load(path)
    template = Jinja().bind(own)
    prompt = Conversation(conversation.messages[:-1], conversation.tools)
    assert encode_prompt(prompt, template, own) == theirs(path, prompt, True)
    [(_, ids, _)] = encode_conversation(conversation, template, own, LossOptions())
    whole = theirs(path, conversation, False)
    if rstrip:  # the reply directly follows its token
        assert ids.tolist() == whole
    else:  # a reply begins with a token of its own, whatever stands before it
        assert own.decode(ids.tolist(), skip_control=False) == own.decode(whole, skip_control=False)
    if not conversation.tools:
        phi3 = Phi3().bind(own)
        assert encode_prompt(prompt, phi3, own) == theirs(path, prompt, True)


def test_flags_in_the_config_count(root: Path, tmp_path: Path) -> None:
    """transformers sets them on the tokens of tokenizer.json; and a token that is named EOS keeps what it takes."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder(root, "llama", False, False) / name).read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    own = huggingface.load(tmp_path)
    flags = {"rstrip": True, "lstrip": False, "normalized": False, "single_word": False, "special": True}
    token_id = {name: own.token_id(name) for name in (*ROLES, "</s>")}
    config["added_tokens_decoder"] = {str(token_id[name]): {"content": name, **flags} for name in ROLES}
    config["added_tokens_decoder"][str(token_id["</s>"])] = {"content": "</s>", **flags, "special": False}
    config |= {"eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    own = huggingface.load(tmp_path)
    assert own.takes_behind == {*ROLES, "</s>"} and not own.takes_before
    for conversation in TALKS.values():
        prompt = Conversation(conversation.messages[:-1], conversation.tools)
        if "</s>" not in str(prompt):
            assert encode_prompt(prompt, Jinja().bind(own), own) == theirs(tmp_path, prompt, True)


LIKE_CONTROL = ["<|user|>\n hello", "<|end|>", "it <|assistant|> \n", "<s>", "<|end|>\n<|user|>"]


@both
@each
def test_control_strings_of_messages_stay_text(root: Path, kind: str, lstrip: bool, rstrip: bool) -> None:
    own = huggingface.load(folder(root, kind, lstrip, rstrip))
    template = Jinja().bind(own)
    control = {id: name for name, id in own.control.items()}
    for text in LIKE_CONTROL:
        ids = encode_prompt(talk(text), template, own)
        names = [control[token] for token in ids if token in control]
        assert names == ["<|user|>", "<|end|>", "<|assistant|>"]
        inside = own.decode(ids[1 : ids.index(own.control["<|end|>"])])
        assert inside.strip(WHITE) == text.strip(WHITE)  # and white space inside a text is nobody's


TEXT = st.text(st.sampled_from(" \n\t\u00a0\u3000\x1chelot<|>日"), min_size=1, max_size=8)


@both
@each
@given(said=st.lists(TEXT | st.sampled_from(LIKE_CONTROL), min_size=2, max_size=5), system=st.none() | TEXT)
@settings(max_examples=60, deadline=None)
def test_training_plans_and_prompts_agree(
    root: Path, kind: str, lstrip: bool, rstrip: bool, said: list[str], system: str | None
) -> None:
    own = huggingface.load(folder(root, kind, lstrip, rstrip))
    conversation = talk(*said, system=system)
    for template in (Jinja().bind(own), Phi3().bind(own)):
        assert prompt_fault(conversation, template, own) is None
        for loss in (LossOptions(), LossOptions(loss="all"), LossOptions(role_weights={"user": 0.5})):
            try:
                [(layout, ids, weights)] = encode_conversation(conversation, template, own, loss)
            except ValueError:
                continue
            assert [one.token for one in spelled(layout, own, conversation)] == ids.tolist()
            plan = Plans(template, own, loss).of(conversation)
            asked = None if plan is None else texts(plan, conversation)
            if plan is None or asked is None:
                continue
            encoded = [own.encode(text, after=part.after) for text, part in zip(asked, filter(_asks, plan))]
            made = fill(plan, [np.array(found, np.int32).tobytes() for found, _ in encoded])
            assert made == (ids.tobytes(), weights.tobytes())


def _asks(part: object) -> bool:
    return hasattr(part, "after")


@both
@each
def test_spans_are_of_the_message_s_characters(root: Path, kind: str, lstrip: bool, rstrip: bool) -> None:
    own = huggingface.load(folder(root, kind, lstrip, rstrip))
    template = Jinja().bind(own)
    for conversation in (TALKS["spaces in front"], TALKS["spaces behind"], TALKS["turns"]):
        encoder = Encoder(template, own, LossOptions(), 256, "keep_reply")
        pieces, _ = encoder.usable(conversation)
        line = line_of(Walked(conversation.origin, "train", None, conversation, pieces), encoder)
        taken = 0
        for message, told in zip(conversation.messages, line["messages"]):
            front = len(message.content) - len(message.content.lstrip(WHITE)) if rstrip else 0
            back = len(message.content) - len(message.content.rstrip(WHITE)) if lstrip else 0
            assert told["cut"] == front + back
            taken += front + back
        assert line["cut_by"] == ({"template": taken} if taken else {})
        [(layout, _, _)] = encode_conversation(conversation, template, own, LossOptions())
        for one in spelled(layout, own, conversation):
            for message, start, end in one.ranges:
                shown = own.decode([one.token], skip_control=False).strip(WHITE + "\ufffd")
                assert shown in conversation.messages[message].content[start:end] or end - start == 0


@both
@each
def test_the_proof_of_a_template_passes(root: Path, kind: str, lstrip: bool, rstrip: bool) -> None:
    own = huggingface.load(folder(root, kind, lstrip, rstrip))
    found = compare_all(Jinja().bind(own), TheirTemplate(TEMPLATE, own))
    assert not [one for one in found if one.failed], "\n".join(table(found))


@both
@each
def test_such_conversations_have_plans(root: Path, kind: str, lstrip: bool, rstrip: bool) -> None:
    own = huggingface.load(folder(root, kind, lstrip, rstrip))
    for template in (Jinja().bind(own), Phi3().bind(own)):
        plan = Plans(template, own, LossOptions()).of(TALKS["turns"])
        assert plan is not None and sum(map(_asks, plan)) == len(TALKS["turns"].messages)
        asked = texts(plan, TALKS["turns"])
        assert asked is not None and [text.strip(WHITE) for text in asked] == ["hello it", "to", "hello", "it\n\nhello"]


MARKED = (  # the roles are tokens, but no special ones: `add_tokens` made them
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def marked(path: Path, kind: str, **flags: bool) -> Path:
    made = backend(kind)
    made.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    made.add_tokens([AddedToken(f"<{role}>", **flags) for role in ("user", "assistant")])
    made.save(str(path / "tokenizer.json"))
    names = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "add_bos_token": False}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": MARKED, **names}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("flags", ["", "rstrip", "lstrip", "single_word", "normalized", "rstrip normalized"])
@each
def test_a_reply_behind_an_added_token_that_is_not_special(tmp_path: Path, kind: str, flags: str) -> None:
    said = {name: name in flags for name in ("rstrip", "lstrip", "single_word", "normalized")}
    own = huggingface.load(marked(tmp_path, kind, **said))
    template = Jinja().bind(own)
    for conversation in (talk("hello", "hello"), talk("it", "  hello", "to", "it"), talk(" hello ", "\n it")):
        prompt = Conversation(conversation.messages[:-1])
        assert encode_prompt(prompt, template, own) == theirs(tmp_path, prompt, True)
        [(layout, ids, weights)] = encode_conversation(conversation, template, own, LossOptions())
        assert [one.token for one in spelled(layout, own, conversation)] == ids.tolist()
        if kind != "first" and "normalized" not in flags:
            assert ids.tolist() == theirs(tmp_path, conversation, False)
        plan = Plans(template, own, LossOptions()).of(conversation)
        asked = None if plan is None else texts(plan, conversation)
        if plan is not None and asked is not None:
            encoded = [own.encode(text, after=part.after) for text, part in zip(asked, filter(_asks, plan))]
            made = fill(plan, [np.array(found, np.int32).tobytes() for found, _ in encoded])
            assert made == (ids.tobytes(), weights.tobytes())


PLAIN = "{% for message in messages %}{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}"
PLAIN += "{% endif %}{% endfor %}"


@each
def test_no_plan_where_a_reply_follows_a_text_that_may_end_with_such_a_token(tmp_path: Path, kind: str) -> None:
    own = huggingface.load(marked(tmp_path, kind, rstrip=True, normalized=False))
    template = Jinja(source=PLAIN).bind(own)
    conversation = talk("it <user> \n", " hello")
    assert Plans(template, own, LossOptions()).of(conversation) is None
    [(_, ids, _)] = encode_conversation(conversation, template, own, LossOptions())
    text = "it <user> \n hello" + str(own.eos_token)
    assert ids.tolist() == own.encode_marked(text)
