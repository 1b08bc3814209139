"""The verb verify template: what a model reads from us against its own chat template, and the certificate."""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lorikeet.base.errors import CheckFailed, TemplateError
from lorikeet.base.files import check_writable, write_file
from lorikeet.base.kinds import kind_class
from lorikeet.checkpoints.download import resolve
from lorikeet.checkpoints.open import open_checkpoint
from lorikeet.data.templates._contract import TemplateOptions
from lorikeet.tokens.huggingface import HuggingFaceTokenizer
from lorikeet.tokens.open import open_tokenizer
from lorikeet.verify import template as proof

CERTIFICATE = "template_certificate.json"


def verify_template(model: str, *, kind: str = "jinja", against: Path | None = None, output: Path) -> dict[str, Any]:
    """Compare the template `kind` with the model's own chat template, or with the one in the file `against`, on
    conversations that templates trip over. Writes the certificate to `output` and returns it, with the lines of its
    table under "table". No weight is read. Raises TemplateError where there is nothing to compare with."""
    check_writable(output, CERTIFICATE)
    options = kind_class("lorikeet.data.templates", TemplateOptions, kind)
    path = resolve(model)
    tokenizer = open_tokenizer(path, open_checkpoint(path))
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    source = _source(tokenizer, against)
    said: dict[str, Any] = {"kind": kind} | ({"source": source} if kind == "jinja" and against is not None else {})
    template = options.model_validate(said).bind(tokenizer)
    found = proof.compare_all(template, proof.TheirTemplate(source, tokenizer))
    made = {
        "certificate_version": 1,
        "passed": not any(one.failed for one in found),
        "model": model,
        "template": kind,
        "against": "the model's chat template" if against is None else str(against),
        "template_fingerprint": template.fingerprint,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "counts": dict(proof.counts(found)),
        "conversations": proof.as_rows(found),
        "versions": {"lorikeet": version("lorikeet-llm")},
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_file(output, json.dumps(made, indent=2, ensure_ascii=False) + "\n")
    return made | {"table": proof.table(found), "certificate": str(output)}


def _source(tokenizer: HuggingFaceTokenizer, against: Path | None) -> str:
    if against is not None:
        try:
            return against.read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateError(
                f"--against: cannot read '{against}'", given=error, allowed="a chat template in jinja, in UTF-8"
            ) from error
    if tokenizer.chat_template is None:
        raise TemplateError(
            "the model brings no chat template to compare with",
            given="a base model",
            allowed="a model with a chat template, or a file with one",
            try_="--against chat_template.jinja --template gemma   (its file, and the kind to compare)",
        )
    return tokenizer.chat_template


def refuse_different(certificate: dict[str, Any]) -> None:
    """Raise CheckFailed, which names the conversations, for a certificate that did not pass."""
    if certificate["passed"]:
        return
    wrong = [one["conversation"] for one in certificate["conversations"] if one["verdict"] in proof.FAILED]
    raise CheckFailed(
        f"template {certificate['template']} is not {certificate['against']}",
        given=", ".join(wrong),
        allowed="the same ids for every conversation",
        try_=f"data.template=jinja; {certificate['certificate']} has both sides",
    )
