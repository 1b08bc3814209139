"""The examples on docs/templates.md, as the kinds write them.

`PYTHONPATH=tests python -m data.templates.page` writes them into the page again; a test compares.
"""

from __future__ import annotations

from pathlib import Path

from data.templates.families import bind, family, talk
from lorikeet.base.kinds import kinds
from lorikeet.base.nouns import Conversation, Message
from lorikeet.data.layout import lay_out
from lorikeet.data.loss import LossOptions, segment_weights, trained_replies
from lorikeet.data.templates._bound import BoundTemplate

PAGE = Path(__file__).parents[3] / "docs" / "templates.md"
START, END = "<!-- examples -->\n", "<!-- end of examples -->\n"
TALK = talk(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."))
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather of a city.", "parameters": {"type": "object"}},
}
CALL = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
CALLS = talk(
    ("user", "Is it warm in Köln?"),
    Message("assistant", "", tool_calls=(CALL,)),
    Message("tool", "21", tool_call_id="a1b2c3d4e"),
    ("assistant", "21 degrees."),
    tools=(TOOL,),
)
# kind: the tokenizers whose examples are shown
SHOWN = {
    "alpaca": ["llama2"],
    "alpaca_legacy": ["llama2"],
    "alpaca_short": ["llama2"],
    "chatml": ["qwen2"],
    "deepseek": ["deepseek_llm", "deepseek_v3", "deepseek_r1"],
    "gemma": ["gemma"],
    "llama2": ["llama2"],
    "llama3": ["llama3", "llama3_1"],
    "mistral": ["llama2", "mistral_v3", "mistral_tekken", "mistral_v7"],
    "phi3": ["phi3"],
    "qwen": ["qwen2_5", "qwen3"],
    "raw": ["llama2"],
    "react": ["qwen2"],
    "sharegpt": ["llama2"],
    "vicuna": ["llama2"],
    "zephyr": ["llama2"],
}
TOOLS = {"llama3": "llama3_1", "mistral": "mistral_v3", "qwen": "qwen2_5", "react": "qwen2"}


def written(template: BoundTemplate, conversation: Conversation) -> str:
    """The text of the last layout, what is learned in ⟦ ⟧."""
    options = LossOptions()
    layout = lay_out(conversation, template, trained_replies(conversation, options))[-1]
    weights = segment_weights(layout.conversation, layout.segments, options, layout.first)
    text, before = "", 0.0
    for segment, weight in [*zip(layout.segments, weights), (None, 0.0)]:
        text += "⟦" if weight and not before else "⟧" if before and not weight else ""
        text += segment.text if segment else ""
        before = weight
    return text.rstrip()


def examples() -> str:
    """The generated part of the page."""
    out = []
    for kind in kinds("lorikeet.data.templates"):
        if kind == "jinja":
            continue
        out.append(f"### {kind}\n")
        for where in SHOWN[kind]:
            template = bind(kind, family(where))
            version = getattr(template.options, "resolved", lambda _: None)(template.tokenizer)
            out += [f"`version: {version}`\n"] if version else []
            out += ["```text", written(template, TALK), "```\n"]
        if kind in TOOLS:
            out += ["With a tool:\n", "```text", written(bind(kind, family(TOOLS[kind])), CALLS), "```\n"]
    return "\n".join(out)


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(START)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{START}\n{examples()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
