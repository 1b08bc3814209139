"""A Modelfile for Ollama: the weights, the template in Go, the system prompt, and where a reply ends."""

from __future__ import annotations

from lorikeet.base.log import note
from lorikeet.data.templates._contract import Template
from lorikeet.data.templates._turns import turns_of
from lorikeet.infer.sampling import GenerateOptions

CONTEXT = 8192  # tokens that Ollama keeps room for, at most, unless the Modelfile is changed


def modelfile(
    template: Template,
    weights: str,
    *,
    adapter: str | None = None,
    context: int,
    options: GenerateOptions | None = None,
    system: str | None = None,
) -> str:
    """The file's text. weights, adapter: as they are named from where it lies. context: the model's own, in tokens.
    options: how replies are sampled; None leaves it to Ollama. system: the prompt of conversations that bring none. A
    template that Go cannot say here, and a prompt that Ollama would cut, are left out, with a note."""
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
    if system and '"""' in system:
        note('no SYSTEM in the Modelfile: Ollama knows no way to write a text that has """ in it')
    elif system:
        lines.append(f'SYSTEM """{system}"""')
    names = {id: name for name, id in template.tokenizer.control.items()}
    stops = [names[id] for id in template.stop_ids if id in names] + list(template.stop_strings)
    stops += [] if options is None else options.stop
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in dict.fromkeys(stops)]
    parameters = {"num_ctx": min(context, CONTEXT)} | ({} if options is None else _sampling(options))
    lines += [f"PARAMETER {name} {value:g}" for name, value in parameters.items()]
    return "\n".join(lines) + "\n"


def _sampling(options: GenerateOptions) -> dict[str, float]:
    """Ollama's parameters. What is left out here would be Ollama's default there: 40 most likely tokens, a penalty."""
    found: dict[str, float] = {
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "repeat_penalty": options.repetition_penalty,
    }
    if options.repetition_penalty != 1:
        found["repeat_last_n"] = -1  # of all that is read, as here
    others = {"presence_penalty": options.presence_penalty, "frequency_penalty": options.frequency_penalty}
    return found | {name: value for name, value in others.items() if value}


def _quoted(text: str) -> str:
    """A parameter's value: Ollama takes quotes off, and reads no escapes but a quote's."""
    return f'"""{text}"""' if '"' in text or "\n" in text else f'"{text}"'
