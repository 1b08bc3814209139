"""docs/options.md, made from the descriptions of the fields: `lorikeet schema --markdown > docs/options.md`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from lorikeet.base.options import Options

_HEAD = """# Every option

Made from the code by `lorikeet schema --markdown`; do not edit. A recipe is a YAML file of these sections. Any option
can be set on the command line too: `lorikeet train recipe.yaml train.learning_rate=1e-4 adapter.r=16`.
"""


def page(recipe: type[Options]) -> str:
    """The whole page, ending with one newline."""
    return "\n".join([*_lines(recipe), *_cleaning()]) + "\n"


def _lines(recipe: type[Options]) -> Iterator[str]:
    from lorikeet.base.option_fields import default_of, holds_options, kinds_of, option_classes

    yield _HEAD
    told: list[type[Options]] = []
    plain = {name: field for name, field in recipe.model_fields.items() if not option_classes(field.annotation)}
    yield from _table(plain, "")
    for name, field in recipe.model_fields.items():
        if name in plain:
            continue
        yield f"\n## {name}\n\n{field.description}"
        if kinds_of(field):
            yield from _kinds(name, field)
            continue
        for section in option_classes(field.annotation):
            yield ""
            yield from _table(section.model_fields, f"{name}.")
            for below, inner in section.model_fields.items():
                if kinds_of(inner):
                    default = getattr(default_of(inner), "kind", None)  # a list of kinds has none
                    said = f" The default is `{default}`." if default else ""
                    yield f"\n### {name}.{below}\n\n{inner.description}{said}"
                    yield from _kinds(f"{name}.{below}" + ("" if default else "[]"), inner, level=4)
                for one in [] if kinds_of(inner) else option_classes(inner.annotation):
                    if one not in told:  # training and validation sources have the same options
                        entry = "" if holds_options(inner) else "[]"  # options of each entry of a list
                        yield f"\n### {name}.{below}{entry}\n\n{' '.join((one.__doc__ or '').split())}\n"
                        yield from _table(one.model_fields, f"{name}.{below}{entry}.")
                    told.append(one)


def _cleaning() -> Iterator[str]:
    """The options of `lorikeet data clean`, whose YAML file is one of its own."""
    from lorikeet.base.option_fields import kinds_of
    from lorikeet.data.clean import CleanOptions

    yield "\n# Cleaning\n"
    yield "A YAML file for `lorikeet data clean --recipe`, or the same on the command line ([data](data.md)).\n"
    yield from _table(CleanOptions.model_fields, "")
    for kind, chosen in kinds_of(CleanOptions.model_fields["steps"]).items():
        yield f"\n### step `{kind}`\n\n{(chosen.__doc__ or '').strip()}\n"
        options = {option: inner for option, inner in chosen.model_fields.items() if option != "kind"}
        yield from _table(options, f"{kind}.") if options else ["No options."]


def _kinds(name: str, field: FieldInfo, level: int = 3) -> Iterator[str]:
    from lorikeet.base.option_fields import kinds_of

    for kind, chosen in kinds_of(field).items():
        first = (chosen.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
        yield f"\n{'#' * level} `{name}: {{kind: {kind}}}`\n\n{' '.join(first.split())}\n"
        options = {option: inner for option, inner in chosen.model_fields.items() if option != "kind"}
        yield from _table(options, f"{name}.") if options else ["No options."]


def _table(fields: dict[str, FieldInfo], prefix: str) -> Iterator[str]:
    from lorikeet.base.option_fields import as_yaml, default_of, in_words
    from lorikeet.base.options import Options

    yield "| option | type | default | meaning |\n|---|---|---|---|"
    for name, field in fields.items():
        default = "required"
        if not field.is_required():
            value = default_of(field)
            default = f"`{getattr(value, 'kind', '{}') if isinstance(value, Options) else as_yaml(value)}`"
        cells = (f"`{prefix}{name}`", in_words(field), default, field.description or "")
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
