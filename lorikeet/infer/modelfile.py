"""A Modelfile for Ollama: the weights, the template in Go, and where a reply ends."""

from __future__ import annotations

from collections.abc import Mapping

from lorikeet.base.log import note
from lorikeet.data.templates._contract import Template
from lorikeet.data.templates._turns import turns_of

CONTEXT = 8192  # tokens that Ollama keeps room for, at most, unless the Modelfile is changed


def modelfile(
    template: Template, weights: str, *, adapter: str | None = None, context: int, options: Mapping[str, float] = {}
) -> str:
    """The file's text. weights, adapter: as they are named from where it lies. context: the model's own, in tokens.
    options: further parameters by Ollama's names. A template that Go cannot say here is left out, with a note."""
    lines = [f"FROM {weights}"]
    if adapter is not None:
        lines.append(f"ADAPTER {adapter}")
    turns = turns_of(template)
    bos = template.tokenizer.bos_token
    go = None if turns is None else turns.ollama(bos)
    if go is None or '"""' in go:
        note("no TEMPLATE in the Modelfile: this one is more than turns of text; Ollama reads the file's own")
    else:
        lines.append(f'TEMPLATE """{go}"""')
    names = {id: name for name, id in template.tokenizer.control.items()}
    stops = [names[id] for id in template.stop_ids if id in names] + list(template.stop_strings)
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in dict.fromkeys(stops)]
    parameters = {"num_ctx": min(context, CONTEXT), **options}
    lines += [f"PARAMETER {name} {value:g}" for name, value in parameters.items()]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A parameter's value: Ollama takes quotes off, and reads no escapes but a quote's."""
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'
