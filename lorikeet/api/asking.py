"""The verb predict, where a server makes the replies: OpenAI's API or TGI's, anywhere."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorikeet.api.answering import locate
from lorikeet.api.prompts import read_prompts
from lorikeet.base.errors import RecipeError
from lorikeet.data.templates._contract import Template
from lorikeet.infer.predict import check_output
from lorikeet.infer.predict_remote import predict_remote
from lorikeet.infer.remote import COMPLETIONS, TGI, Server
from lorikeet.infer.sampling import GenerateOptions
from lorikeet.infer.scores import KNOWN, check_installed, score

KEY = "OPENAI_API_KEY"


def predict_api(
    name: str,
    inputs: Sequence[Path | str],
    output: Path,
    url: str,
    *,
    render: str | Path | None = None,
    concurrency: int = 16,
    retries: int = 6,
    timeout_seconds: float = 600.0,
    pause_seconds: float = 0.5,
    model: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Ask the server at `url` for a reply to every prompt of the input files; writes one JSON object per line.

    name: what the server calls the model. render: the run or model whose template renders the prompts, for an address
    that takes text; no weights are read. The key is OPENAI_API_KEY's. Returns counts and throughput. Raises RecipeError
    for options that a server is not told, ServerError where it does not answer; the same call then goes on."""
    if model and render is None:
        raise RecipeError(f"model.{next(iter(model))}: has no effect with --api", try_="leave it out")
    generate = GenerateOptions(**options)
    check_output(output, inputs)
    key = os.environ.get(KEY)
    server = Server(url, name, render is not None, key, timeout_seconds, retries, pause_seconds)
    template = None if render is None else _template(render, model)
    if template is not None and server.speaks in (COMPLETIONS, TGI):
        generate = generate.model_copy(update={"stop": [*generate.stop, *_ends(template)]})
    read = read_prompts(inputs, render, model)
    figures = predict_remote(server, read, output, generate, template=template, concurrency=concurrency)
    return {**figures, "output": str(output)}


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise RecipeError for a metric that does not exist, MissingExtra for one whose package is missing."""
    unknown = [metric for metric in metrics if metric not in KNOWN]
    if unknown:
        raise RecipeError("--metrics: unknown", given=unknown[0], allowed=" ".join(KNOWN))
    check_installed(metrics)


def measure(output: Path, metrics: Sequence[str]) -> dict[str, float]:
    """`metrics` over a prediction's rows, where some have references; those that were refused do not count."""
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").split("\n") if line]
    judged = [row for row in rows if row["finish_reason"] != "error"]
    return score(judged, metrics) if any(row["reference"] is not None for row in judged) else {}


def _template(render: str | Path, model: Mapping[str, Any] | None) -> Template:
    located = locate(render, model)
    return located.template.bind(located.base.tokenizer)


def _ends(template: Template) -> list[str]:
    """What ends a reply: a server that takes text knows no template."""
    names = {id: name for name, id in template.tokenizer.control.items()}
    return [*(names[id] for id in template.stop_ids if id in names), *template.stop_strings]
