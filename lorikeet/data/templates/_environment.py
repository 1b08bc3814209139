"""The jinja environment chat templates are written for: the one transformers makes, sandboxed and immutable."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lorikeet.base.errors import TemplateError
from lorikeet.data.templates._hole import refuse_holes


class GenerationTag(Extension):
    """`{% generation %}` marks replies for transformers; replies are found without it here, so it says nothing."""

    tags = {"generation"}  # noqa: RUF012  (the name and form jinja asks for)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def chat_environment() -> jinja2.Environment:
    """What chat templates are compiled in."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def compile_template(source: str, name: str) -> jinja2.Template:
    """The template, compiled. Raises TemplateError with the line for a syntax error."""
    environment = chat_environment()
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        lines = source.splitlines()
        raise TemplateError(
            f"{name}:{error.lineno}: {error.message}",
            given=lines[error.lineno - 1].strip()[:200] if 0 < error.lineno <= len(lines) else None,
            allowed="jinja as chat templates use it",
        ) from error


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models see it: not escaped for HTML, unlike jinja's own filter."""
    refuse_holes(value)  # json reads strings without asking them
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
