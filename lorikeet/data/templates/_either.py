"""A reply that is either a call of a tool or an answer of some form: the grammar of both, as llguidance reads it.

A call that is told from the answer by what stands before it is written as the template writes it, its control tokens by
their ids. A bare object is a rule of JSON of its own, like the answer: a text that begins as the answer's first
characters do would be taken for the only way to go on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lorikeet.data.templates._bound import split_control
from lorikeet.data.templates._calls import CallForm, JsonForm, literal, signatures
from lorikeet.tokens._contract import Tokenizer

_DEFINED = ("$defs", "definitions")  # what a schema's references name, from its own root


def either(form: CallForm, tools: Sequence[Mapping[str, Any]], answer: str, tokenizer: Tokenizer) -> str:
    """The grammar (Lark) of a reply that calls one of `tools` in this form, or is `answer`: a rule's right side."""
    rules = [f"answer: {answer}"]
    if not isinstance(form, JsonForm):  # ReAct's lines
        ways = [literal("\nFinal Answer: ") + " answer"]
        for number, (name, schema) in enumerate(signatures(tools)):
            ways.append(f"{literal(f'{chr(10)}Action: {name}{chr(10)}Action Input: ')} args_{number}")
            rules.append(f"args_{number}: %json {json.dumps(schema)}")
        return "\n".join([f"start: THOUGHT ({' | '.join(ways)})", "THOUGHT: /[^\\n]{0,120}/", *rules, ""])
    ways = ["answer"]
    for number, (name, schema) in enumerate(signatures(tools)):
        ways.append(f"call_{number}")
        if form.mark:
            first, behind = form.before(name), form.extra + "}" + form.closing
            call = f"{_spelled(form.opening + first, tokenizer)} args_{number} {_spelled(behind, tokenizer)}"
            rules += [f"call_{number}: {call}", f"args_{number}: %json {json.dumps(schema)}"]
        else:
            rules.append(f"call_{number}: %json {json.dumps(_object(form, name, schema))}")
    return "\n".join([f"start: {' | '.join(ways)}", *rules, ""])


def _spelled(text: str, tokenizer: Tokenizer) -> str:
    """A template's own text in a rule: control tokens by their ids, the rest as it is."""
    return " ".join(
        f"<[{tokenizer.control[part.text]}]>" if part.control else literal(part.text)
        for part in split_control(text, tokenizer)
    )


def _object(form: JsonForm, name: str, schema: Any) -> dict[str, Any]:
    """The schema of the object that calls a tool."""
    defined = {key: schema[key] for key in _DEFINED if isinstance(schema, dict) and key in schema}
    own = {key: value for key, value in schema.items() if key not in defined} if defined else schema
    keys = {form.name: {"const": name}, form.arguments: own}
    return {"type": "object", "properties": keys, "required": list(keys), "additionalProperties": False, **defined}
