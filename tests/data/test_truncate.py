from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorikeet.base.errors import DataError
from lorikeet.base.nouns import Conversation, Message
from lorikeet.data.loss import LossOptions
from lorikeet.data.templates.alpaca import Alpaca
from lorikeet.data.templates.chatml import ChatML
from lorikeet.data.templates.jinja import Jinja
from lorikeet.data.truncate import Encoder, Piece


def talk(*texts: str, system: str | None = None) -> Conversation:
    turns = [Message(("user", "assistant")[number % 2], text) for number, text in enumerate(texts)]
    return Conversation(tuple([Message("system", system)] * bool(system) + turns))


def pieces(tokenizer, conversation, max_length: int, truncation: str, template=None) -> list[Piece]:
    template = template or ChatML().bind(tokenizer)
    return list(Encoder(template, tokenizer, LossOptions(), max_length, truncation).pieces(conversation))  # type: ignore[arg-type]


def text(tokenizer, piece: Piece) -> str:
    return tokenizer.decode(piece.tokens, skip_control=False)


LONG = talk("a b c d e f g h i j k l m n o p " * 4, "hello")


def test_short_conversations_are_untouched(tokenizer) -> None:
    for policy in ("drop", "cut", "keep_reply"):
        [piece] = pieces(tokenizer, LONG, 1000, policy)
        assert not piece.cut and piece.dropped is None


def test_drop_and_cut(tokenizer) -> None:
    assert pieces(tokenizer, LONG, 40, "drop")[0].dropped == "longer than max_length"
    [piece] = pieces(tokenizer, LONG, 40, "cut")
    assert piece.dropped == "no trained token within max_length" and len(piece.tokens) == 40
    [piece] = pieces(tokenizer, talk("hello", "a b c d e f g " * 9), 40, "cut")
    assert piece.dropped is None and piece.cut and len(piece.tokens) == 40 and piece.weights.any()


def test_keep_reply_shortens_the_question_from_its_start(tokenizer) -> None:
    [piece] = pieces(tokenizer, LONG, 40, "keep_reply")
    assert piece.cut and 36 <= len(piece.tokens) <= 40
    shown = text(tokenizer, piece).removesuffix("\n")
    assert shown.startswith("<|im_start|>user\n") and shown.endswith(
        "n o p <|im_end|>\n<|im_start|>assistant\nhello<|im_end|>"
    )


@pytest.mark.parametrize("heading", [True, False])
@pytest.mark.parametrize("length", [60, 45])
def test_keep_reply_shortens_an_alpaca_row_s_input_before_its_instruction(
    tokenizer, heading: bool, length: int
) -> None:
    given = "a b c d e f g h " * 20
    asked = Message("user", "how are you\n" + given, context=given)
    row = Conversation((asked, Message("assistant", "hello")))
    template = Alpaca(system="", input_heading=heading).bind(tokenizer)
    [piece] = pieces(tokenizer, row, length, "keep_reply", template)
    assert piece.dropped is None and length - 4 <= len(piece.tokens) <= length
    shown = text(tokenizer, piece)
    between = "\n\n### Input:\n" if heading else "\n"
    start, end = "### Instruction:\nhow are you" + between, "\n\n### Response:\nhello</s>\n\n"
    assert shown.startswith(start) and shown.endswith(end) and given.endswith(shown[len(start) : -len(end)])


def test_keep_reply_shortens_an_instruction_whose_input_is_too_short_to_help(tokenizer) -> None:
    given = "a b c"
    asked = Message("user", "how are you " * 30 + "\n" + given, context=given)
    row = Conversation((asked, Message("assistant", "hello")))
    [piece] = pieces(tokenizer, row, 50, "keep_reply", Alpaca(system="").bind(tokenizer))
    shown = text(tokenizer, piece)
    assert piece.dropped is None and len(piece.tokens) <= 50 and "### Input:" not in shown
    assert "how are you" in shown and shown.endswith("\n\n### Response:\nhello</s>\n\n")


def test_keep_reply_leaves_out_the_oldest_turns_first(tokenizer) -> None:
    chat = talk("hello " * 5, "world " * 5, "how are you", "the house", system="be good")
    [whole] = pieces(tokenizer, chat, 1000, "keep_reply")
    [piece] = pieces(tokenizer, chat, len(whole.tokens) - 1 - 1, "keep_reply")
    shown = text(tokenizer, piece)
    assert "be good" in shown and "hello" not in shown and "world" not in shown
    assert "how are you" in shown and shown.rstrip("\n").endswith("the house<|im_end|>")


def test_a_reply_that_alone_is_too_long_is_cut_at_its_end(tokenizer) -> None:
    [piece] = pieces(tokenizer, talk("hello hello hello", "x y z " * 50), 32, "keep_reply")
    assert piece.cut and len(piece.tokens) == 32 and piece.weights[-1] == 1 and piece.dropped is None


def document(text: str, stride: int | None = None) -> Conversation:
    return Conversation((Message("text", text),), stride=stride)


def test_documents_become_windows_of_one_encoding(tokenizer, bos_tokenizer) -> None:
    ids = [*tokenizer.encode("x y z " * 10)[0], tokenizer.control["</s>"]]
    windows = pieces(tokenizer, document("x y z " * 10, stride=6), 16, "keep_reply")
    assert [window.tokens.tolist() for window in windows] == [ids[at : at + 16] for at in range(0, len(ids) - 6, 10)]
    assert [int((window.weights == 0).sum()) for window in windows] == [1] + [6] * (len(windows) - 1)
    assert not any(window.cut or window.dropped for window in windows)
    # a model that has a BOS sees it in front of everything, so of every window
    bos = bos_tokenizer.control["<s>"]
    windows = pieces(bos_tokenizer, document("x y z " * 10, stride=6), 17, "keep_reply")
    assert [window.tokens.tolist() for window in windows] == [
        [bos, *ids[at : at + 16]] for at in range(0, len(ids) - 6, 10)
    ]
    assert [int((window.weights == 0).sum()) for window in windows] == [1] + [7] * (len(windows) - 1)


def test_documents_follow_the_other_policies(bos_tokenizer) -> None:
    [piece] = pieces(bos_tokenizer, document("x y z " * 50), 16, "cut")
    assert piece.cut and len(piece.tokens) == 16 and piece.weights[1:].all()
    assert pieces(bos_tokenizer, document("x y z " * 50), 16, "drop")[0].dropped == "longer than max_length"


@pytest.mark.parametrize("stride", [15, 16, 1000])
def test_a_stride_that_leaves_nothing_new_is_refused(bos_tokenizer, stride) -> None:
    with pytest.raises(DataError) as caught:
        pieces(bos_tokenizer, document("x y z " * 50, stride), 16, "keep_reply")
    assert f"stride {stride}" in str(caught.value) and "1 to 14" in str(caught.value)


@given(
    words=st.text("abc é日\n😀", min_size=1, max_size=300).filter(str.strip),
    max_length=st.integers(8, 64),
    stride=st.none() | st.integers(1, 63),
    weight=st.sampled_from([None, 0.5]),
    bos=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_every_token_of_a_document_is_learned_exactly_once(
    tokenizer, bos_tokenizer, words, max_length, stride, weight, bos
) -> None:
    used = bos_tokenizer if bos else tokenizer
    stride = stride if stride is None else min(stride, max_length - 1 - bos)
    encoder = Encoder(
        ChatML().bind(used),
        used,
        LossOptions(role_weights={} if weight is None else {"text": weight}),
        max_length,
        "keep_reply",
    )
    windows = list(encoder.pieces(document(words, stride)))
    whole = [*used.encode(words)[0], used.control["</s>"]]
    learned, at = np.zeros(len(whole)), 0
    for number, window in enumerate(windows):
        if number:
            at += max_length - bos - (max(1, max_length // 8) if stride is None else stride)
        head, own = window.tokens[:bos].tolist(), window.tokens[bos:].tolist()
        assert head == [used.control["<s>"]] * bos and own == whole[at : at + max_length - bos]
        assert window.weights[0] == 0, "nothing predicts a window's first token"
        learned[at : at + len(own)] += window.weights[bos:]
    first = 0 if bos else 1  # without a BOS nothing predicts the document's first token
    assert not learned[:first].any() and (learned[first:] == (weight or 1)).all()


def test_no_trained_token_is_said(tokenizer) -> None:
    untrained = Conversation((Message("user", "q"), Message("assistant", "a", trained=False)))
    assert [piece.dropped for piece in pieces(tokenizer, untrained, 100, "keep_reply")] == ["no trained token"]


def test_layouts_per_reply_are_cut_one_by_one(tokenizer, templates) -> None:
    template = Jinja(source=templates["thinking"]).bind(tokenizer)
    chat = talk("a b c " * 9, "<think>hm</think>one", "d e f " * 9, "two")
    first, second = pieces(tokenizer, chat, 40, "keep_reply", template)
    assert first.cut and second.cut
    assert "one<|im_end|>" in text(tokenizer, first) and "two" not in text(tokenizer, first)
    assert "two<|im_end|>" in text(tokenizer, second) and "one" not in text(tokenizer, second)


@given(
    texts=st.lists(st.text("abc é日\n", min_size=1, max_size=60).filter(str.strip), min_size=2, max_size=6),
    max_length=st.integers(8, 80),
    system=st.none() | st.just("be good"),
)
@settings(max_examples=60, deadline=None)
def test_keep_reply_always_fits_and_still_begins_with_a_true_prompt(tokenizer, texts, max_length, system) -> None:
    texts = texts[: len(texts) // 2 * 2]
    template = ChatML().bind(tokenizer)
    [piece] = pieces(tokenizer, talk(*texts, system=system), max_length, "keep_reply", template)
    assert len(piece.tokens) <= max_length and len(piece.tokens) == len(piece.weights)
    reply = [tokenizer.control["<|im_start|>"], *tokenizer.encode("assistant\n")[0], *tokenizer.encode(texts[-1])[0]]
    if piece.dropped is None and piece.cut and len(reply) + 30 < max_length and system is None:
        ids = piece.tokens.tolist()
        assert any(ids[at : at + len(reply)] == reply for at in range(len(ids))), "the last reply survives whole"
        assert text(tokenizer, piece).startswith("<|im_start|>user\n")  # its line end may be one token with the text's
