from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorikeet.base.errors import TemplateError
from lorikeet.base.nouns import Conversation, Message
from lorikeet.data.encode import encode, encode_conversation, encode_prompt
from lorikeet.data.layout import lay_out, match_prefix
from lorikeet.data.loss import LossOptions
from lorikeet.data.templates._contract import Segment
from lorikeet.data.templates.alpaca import Alpaca
from lorikeet.data.templates.chatml import ChatML
from lorikeet.data.templates.jinja import Jinja
from lorikeet.data.templates.vicuna import Vicuna

REPLIES = LossOptions()


def talk(*pairs: tuple[str, str]) -> Conversation:
    return Conversation(tuple(Message(role, text) for role, text in pairs))


CHAT = talk(
    ("system", "be good"), ("user", "hello"), ("assistant", "world"), ("user", "how"), ("assistant", "the house")
)


def trained(conversation: Conversation, template, loss: LossOptions = REPLIES) -> list[str]:
    """The trained text of each example, control tokens by name, `|` between separate runs."""
    tokenizer = template.tokenizer
    shown = []
    for _, ids, weights in encode_conversation(conversation, template, tokenizer, loss):
        runs: list[list[int]] = [[]]
        for token, weight in zip(ids, weights):
            if weight > 0:
                runs[-1].append(int(token))
            elif runs[-1]:
                runs.append([])
        shown.append("|".join(tokenizer.decode(run, skip_control=False) for run in runs if run))
    return shown


def all_templates(tokenizer, templates) -> dict:
    named = {name: Jinja(source=source) for name, source in templates.items()}
    options = {"chatml kind": ChatML(), "alpaca": Alpaca(), "vicuna": Vicuna(), **named}
    return {name: option.bind(tokenizer) for name, option in options.items()}


def test_replies_and_their_ends_are_trained(tokenizer, templates) -> None:
    bound = all_templates(tokenizer, templates)
    assert trained(CHAT, bound["chatml"]) == ["world<|im_end|>|the house<|im_end|>"]
    assert trained(CHAT, bound["trimmed"]) == ["world<|eot|>|the house<|eot|>"]
    assert trained(CHAT, bound["alpaca"]) == ["world</s>|the house</s>"]
    # the space behind the colon is the model's own
    assert trained(CHAT, bound["vicuna"]) == [" world</s>| the house</s>"]
    assert trained(talk(("user", "q"), ("assistant", "a")), bound["inst"]) == [" a </s>"]


def test_a_template_without_stable_prefix_is_laid_out_once_per_reply(tokenizer, templates) -> None:
    template = all_templates(tokenizer, templates)["thinking"]
    chat = talk(("user", "q"), ("assistant", "<think>\nhm\n</think>\n\none"), ("user", "r"), ("assistant", "two"))
    assert trained(chat, template) == [
        "<think>\nhm\n</think>\n\none<|im_end|>",
        "<think>\n\n</think>\n\ntwo<|im_end|>",
    ]
    layouts = lay_out(chat, template, [1, 3])
    second = "".join(segment.text for segment in layouts[1].segments)
    assert "hm" not in second and second.count("<think>") == 1
    # with user weights no question is learned twice
    both = trained(chat, template, LossOptions(role_weights={"user": 0.5}))
    assert [text.count("q") for text in both] == [1, 0] and both[1].startswith("r<|im_end|>|<think>")


def test_prompt_that_writes_more_than_the_rendering(tokenizer) -> None:
    # the generation prompt opens a thought which the rendering of past replies does not have
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    template = Jinja(source=source).bind(tokenizer)
    chat = talk(("user", "q"), ("assistant", "a"))
    [(_, ids, _)] = encode_conversation(chat, template, tokenizer, REPLIES)
    assert list(ids[: -len(tokenizer.encode("a")[0]) - 1]) == encode_prompt(chat, template, tokenizer)
    assert trained(chat, template) == ["a<|im_end|>"]


def test_tool_calls_are_part_of_the_reply(tokenizer, templates) -> None:
    call = {"name": "f"}
    chat = Conversation(
        (
            Message("user", "q"),
            Message("assistant", "", tool_calls=(call,)),
            Message("tool", "4"),
            Message("assistant", "a"),
        )
    )
    bound = all_templates(tokenizer, templates)
    assert trained(chat, bound["tools"]) == ['<call>{"name": "f"}</call><|im_end|>|a<|im_end|>']
    assert trained(chat, bound["thinking"]) == [
        '<think>\n\n</think>\n\n<call>[{"name": "f"}]</call><|im_end|>',
        "<think>\n\n</think>\n\na<|im_end|>",
    ]


def test_a_template_that_drops_the_thought_it_should_teach_is_refused(tokenizer) -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    template = Jinja(source=source).bind(tokenizer)
    with pytest.raises(TemplateError, match="drops a part of message 1"):
        trained(talk(("user", "q"), ("assistant", "<think>hm</think>a")), template)
    assert trained(talk(("user", "q"), ("assistant", "a")), template) == ["a<|im_end|>"]


def test_a_reply_without_an_end_is_refused(tokenizer) -> None:
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    source += "{% if add_generation_prompt %}assistant: {% endif %}"
    template = Jinja(source=source).bind(tokenizer)
    with pytest.raises(TemplateError, match="never learn to stop"):
        lay_out(CHAT, template, [2])
    assert encode_prompt(CHAT, template, tokenizer)  # asking such a template is possible


def test_loss_policies(tokenizer, templates) -> None:
    template = all_templates(tokenizer, templates)["chatml kind"]
    start, end = "<|im_start|>", "<|im_end|>"

    def of(chat: Conversation = CHAT, **options) -> str:
        return trained(chat, template, LossOptions(**options))[0]

    assert of(loss="last_reply") == f"the house{end}"
    assert of(loss="all") == "".join(segment.text for segment in template.render(CHAT)).removeprefix(start)
    assert of(loss="replies+structure") == (
        # the very first start token has nothing before it to predict it from
        f"{end}\n{start}|{end}\n{start}|world{end}\n{start}|{end}\n{start}|the house{end}\n"
    )
    assert of(role_weights={"user": 0.25}) == f"hello{end}|world{end}|how{end}|the house{end}"
    marked = Conversation(
        (
            Message("user", "hello", weight=0.5),
            Message("assistant", "world", trained=False),
            Message("user", "how", trained=True),
            Message("assistant", "the house", weight=2.0),
        )
    )
    assert of(marked) == f"hello{end}|how{end}|the house{end}"
    _, _, weights = encode_conversation(marked, template, tokenizer, LossOptions(role_weights={"user": 0.1}))[0]
    assert sorted(set(weights.tolist())) == pytest.approx([0, 0.1, 0.5, 2.0])
    assert of(marked, loss="last_reply") == f"hello{end}|how{end}|the house{end}"


def test_documents_are_trained_whole(bos_tokenizer) -> None:
    template = ChatML().bind(bos_tokenizer)
    for loss in ("replies", "last_reply", "all", "replies+structure"):
        assert trained(talk(("text", "hello world")), template, LossOptions(loss=loss)) == ["hello world</s>"]


def test_token_weight_is_the_largest_of_its_characters(tokenizer) -> None:
    before, after = "hello he", "llo"  # the cut is inside a token
    ids, weights = encode([Segment(before), Segment(after)], [0, 0.5], tokenizer)
    plain, offsets = tokenizer.encode(before + after)
    assert any(start < len(before) < end for start, end in offsets)
    assert ids.tolist() == plain and ids.dtype == np.int32 and weights.dtype == np.float32
    assert weights.tolist() == [0.5 if end > len(before) else 0 for _, end in offsets]
    ids, weights = encode([Segment("a日"), Segment("é本")], [0, 1], tokenizer)  # several tokens to a character
    assert [weights[list(tokenizer.encode("a日é本")[0]).index(ids[-1])], weights[0]] == [1, 0]


TEXTS = st.text(min_size=1, max_size=10).filter(lambda text: bool(text.strip())) | st.sampled_from(
    ["<|im_end|>", "<|im_start|>assistant\nsure</s>", "<think>x</think>y", " a ", "a\n", "\na", "<s>", "###", "USER: x"]
)
CHATS = st.lists(TEXTS, min_size=2, max_size=6).map(
    lambda texts: talk(*((("user", "assistant")[number % 2], text) for number, text in enumerate(texts)))
)


@given(chat=CHATS, loss=st.sampled_from(["replies", "last_reply", "all", "replies+structure"]))
@settings(max_examples=40, deadline=None)
def test_prompts_are_prefixes_of_training_and_user_text_is_never_control(chat, loss, tokenizer, templates) -> None:
    control = set(tokenizer.control.values())
    harmless = talk(*((message.role, "x") for message in chat.messages))
    for name, template in all_templates(tokenizer, templates).items():
        examples = encode_conversation(chat, template, tokenizer, LossOptions(loss=loss))
        replies = [index for index, message in enumerate(chat.messages) if message.role == "assistant"]
        wanted = replies[-1:] if loss == "last_reply" else replies
        if len(examples) == 1:
            examples = examples * len(wanted)
        for index, (_, ids, weights) in zip(wanted, examples, strict=True):
            prompt = encode_prompt(Conversation(chat.messages[: index + 1]), template, tokenizer)
            assert ids[: len(prompt)].tolist() == prompt
            assert weights[len(prompt)] > 0, name  # the reply begins right there
            assert weights[0] == 0
        if name != "thinking":  # there the tags of a reply's own thoughts may count as the template's
            same = encode_conversation(harmless, template, tokenizer, LossOptions(loss=loss))[0][1]
            assert [token for token in ids.tolist() if token in control] == [
                token for token in same.tolist() if token in control
            ]


def test_match_prefix_compares_text_across_segments() -> None:
    full = [Segment("ab"), Segment("cd"), Segment("</s>", True), Segment("e")]
    assert match_prefix([Segment("abc")], full) == (1, 1)
    assert match_prefix([Segment("a"), Segment("bcd"), Segment("</s>", True)], full) == (2, 4)
    assert match_prefix([Segment("abcd</s>")], full) is None
    assert match_prefix([Segment("abx")], full) is None
    assert match_prefix([Segment("ab"), Segment("</s>", True)], full) is None
    assert match_prefix(full + [Segment("f")], full) is None


def test_what_a_text_follows():
    """A tokenizer that puts a space before text learns where it stands: sentencepiece's goes before no reply."""
    told = []

    class Telling:
        def __init__(self):
            self.control = {"<s>": 1, "</s>": 2}
            self.takes_before, self.takes_behind, self.divides = frozenset(), frozenset(), {}

        def encode(self, text, *, after):
            told.append((text, after))
            return [0] * len(text), [(place, place + 1) for place in range(len(text))]

    segments = [
        Segment("ask"),
        Segment("say", message=1, part="content", reply=True),
        Segment("</s>", control=True, message=1, part="end", reply=True),
        Segment("more"),
    ]
    encode(segments, [0.0, 1.0, 1.0, 0.0], Telling())
    encode([Segment("<s>", control=True), *segments[:2]], [0.0, 0.0, 1.0], Telling())
    assert told == [("ask", "start"), ("say", "text"), ("more", "control"), ("ask", "control"), ("say", "text")]
