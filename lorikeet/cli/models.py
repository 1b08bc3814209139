"""The command models: what is here, and what a folder or file is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from lorikeet.cli import _command


def register(app: typer.Typer) -> None:
    """Add this file's command to `app`."""
    _command.add(app, models, "models", "lorikeet models smollm2-135m")


def models(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[PATH|NAME]",
            help="A model folder, a .gguf file, an adapter, or the name of a downloaded model.",
            show_default=False,
        ),
    ] = None,
    recommended: Annotated[
        bool, typer.Option("--recommended", help="List models worth fine-tuning, and what fits 8, 16 and 24 GiB.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Also look into pickled weights; only tensors are unpickled.")
    ] = False,
) -> None:
    """Say what a model is and whether it can be trained; without a name, list models. Reads no weights."""
    if recommended:
        _show_recommended(name, json)
        return
    facts = _overview() if name is None else _one(name, allow_pickle)
    if json:
        from json import dumps

        typer.echo(dumps(facts, indent=2, ensure_ascii=False))
    elif name is None:
        _show_overview(facts)
    else:
        _command.print_values(dict(_lines(facts)))


def _show_recommended(name: str | None, as_json: bool) -> None:
    from lorikeet.base.errors import RecipeError
    from lorikeet.plan.recommended import COLUMNS, table

    if name is not None:
        raise RecipeError("--recommended: lists models and takes no name", given=name, try_=f"lorikeet models {name}")
    rows = list(table())
    if as_json:
        from json import dumps

        typer.echo(dumps([dict(zip(COLUMNS, row)) for row in rows], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    listed = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    shown = [0, 1, *range(5, len(COLUMNS))]  # eighty columns; --json and docs/models.md have the rest
    for column in shown:
        listed.add_column(COLUMNS[column], no_wrap=True)
    for row in rows:
        listed.add_row(*(_short(row[column]) for column in shown))
    console = Console(highlight=False)
    console.print(listed)
    console.print("ckpt: with train.gradient_checkpointing=true    -: none of these fits", markup=False)
    if any("(later)" in cell for row in rows for cell in row):
        console.print("*: would fit with 4-bit frozen weights, which cannot be trained yet", markup=False)


def _short(cell: str) -> str:
    """An alias in place of the hub's name, a star in place of `(later)`."""
    return cell.split("`")[1] if "`" in cell else cell.replace(" (later)", "*")


def _one(name: str, allow_pickle: bool) -> dict[str, Any]:
    from lorikeet.base.errors import CheckpointError
    from lorikeet.checkpoints.download import ALIASES, locate, nearest_here
    from lorikeet.plan.describe import describe

    path = locate(name)
    if path is None:
        exact = name in ALIASES or ":" in name
        raise CheckpointError(
            f"'{name}' is not downloaded" + ("" if exact else ", and is no folder here"),
            given=name,
            allowed="what is on this machine: `lorikeet models` lists it",
            try_=(None if exact else nearest_here(name)) or f"lorikeet download {name}",
        )
    return describe(path, allow_pickle=allow_pickle)


def _overview() -> dict[str, Any]:
    from lorikeet.checkpoints.download import ALIASES, cached, locate, models_dir
    from lorikeet.models.load import families

    aliases = {alias: {"source": source, "here": locate(alias) is not None} for alias, source in ALIASES.items()}
    lying = [
        {"source": source, "path": str(path), "size_bytes": size, "complete": complete}
        for source, path, size, complete in cached()
    ]
    known = [{"family": one.kind, "model_type": one.model_type, "gguf": one.gguf_architecture} for one in families()]
    return {"aliases": aliases, "cache": str(models_dir()), "cached": lying, "families": known}


def _show_overview(facts: dict[str, Any]) -> None:
    typer.echo("aliases")
    width = max(len(alias) for alias in facts["aliases"])
    for alias, told in facts["aliases"].items():
        typer.echo(f"  {alias:<{width}}  {told['source']}" + ("  (downloaded)" if told["here"] else ""))
    typer.echo(f"\ndownloaded, in {facts['cache']}")
    for one in facts["cached"]:
        left = "" if one["complete"] else "  (unfinished: the same download goes on with it)"
        typer.echo(f"  {one['source']}  {_bytes(one['size_bytes'])}{left}\n    {one['path']}")
    if not facts["cached"]:
        typer.echo("  nothing yet: lorikeet download smollm2-135m")
    typer.echo("\nfamilies that can be trained\n  " + " ".join(one["family"] for one in facts["families"]))
    typer.echo("\nwhat a model is: lorikeet models PATH|NAME")


def _lines(facts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(name, value) of each line about one model."""
    yield "path", facts["path"]
    if facts["layout"] == "adapter":
        yield "layout", f"an adapter ({facts['adapter']}), {_bytes(facts['size_bytes'])}"
        yield "base model", facts["base"] or "not stated"
        yield "rank", f"r={facts['r']} lora_alpha={facts['lora_alpha']}"
        yield "targets", _words(facts["target_modules"])
        yield "trainable", f"no: {facts['why_not']}"
        return
    layout = {"hf": "Hugging Face folder", "gguf": "GGUF file", "meta": "Meta's checkpoint"}.get(
        facts["layout"], facts["layout"]
    )
    yield "layout", f"{layout}, {_bytes(facts['size_bytes'])}"
    yield "family", facts["family"] or f"none that is known here ({facts['model_type'] or 'no model_type'})"
    if facts["architecture"]:
        yield "architecture", facts["architecture"]
    packed = facts["layout"] == "hf" and facts["quantisation"]  # 4-bit weights share numbers; scales are numbers too
    counted = f"{_count(facts['parameters'])} ({facts['parameters']:,}) in {facts['tensors']} tensors"
    yield ("numbers", f"{counted}, as stored") if packed else ("parameters", counted)
    yield "layers", f"{_known(facts['layers'])}, width {_known(facts['width'])}, ffn {_known(facts['ffn_width'])}"
    of = f" on {facts['kv_heads']} key/value heads" if facts["kv_heads"] else ""
    yield "heads", f"{_known(facts['heads'])}{of}, {_known(facts['head_width'])} wide"
    yield "context", f"{_known(facts['context'])} tokens"
    stored = facts["stored"].items()
    mix = ", ".join(
        f"{kind} {of['tensors']} tensors ({of['parameters'] / facts['parameters']:.0%})" for kind, of in stored
    )
    yield "stored as", mix + (f"; {facts['quantisation']}" if facts["quantisation"] else "")
    yield from _text_lines(facts)
    yield "trainable", "yes" if facts["trainable"] else f"no: {facts['why_not']}"


def _text_lines(facts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    tokenizer, template = facts["tokenizer"], facts["chat_template"]
    if tokenizer is None:
        yield "tokenizer", "none that can be read"
        return
    yield (
        "tokenizer",
        f"{tokenizer['kind']}, {tokenizer['vocabulary']:,} tokens, {tokenizer['control_tokens']} of control",
    )
    names = [f"{role.removesuffix('_token')} {name!r}" for role, name in tokenizer["special"].items()]
    bos = "; bos begins every text" if tokenizer["adds_bos"] else ""
    yield "special", (", ".join(names) or "none named") + bos
    if template["own"]:
        same = f"; says the same as {_words(template['same_as'])}" if template["same_as"] else ""
        yield "template", f"its own, {template['characters']:,} characters{same}"
    else:
        yield "template", "none of its own"
    if template.get("fault"):
        yield "template fault", template["fault"]
    if template["suits"]:
        yield "suits it", _words(template["suits"])


def _words(some: Any) -> str:
    return " ".join(map(str, some)) if isinstance(some, list | tuple) else str(some)


def _known(figure: Any) -> Any:
    return "?" if figure is None else figure


def _count(parameters: int) -> str:
    for unit, name in ((10**9, "B"), (10**6, "M")):
        if parameters >= unit:
            return f"{parameters / unit:.3g}{name}"
    return f"{parameters / 1000:.3g}K"


def _bytes(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.1f} MiB"
