"""What the files beside a tokenizer say about it: special tokens, chat template, tokens added later."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorikeet.base.errors import TokenizerError

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Special:
    """What a model says about its special tokens, besides the vocabulary."""

    names: dict[str, str] = field(default_factory=dict)  # "bos_token" -> "<s>"
    others: tuple[str, ...] = ()  # further control tokens
    add_bos: bool | None = None  # None: what the backend's post-processor does decides
    end_ids: tuple[int, ...] = ()  # ids that end a reply besides eos_token
    chat_template: str | None = None


def read(file: Path) -> bytes:
    """The content of `file`. Raises TokenizerError for a git-lfs pointer, an empty or an unreadable file."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{file}: cannot be read", given=error) from error
    if content.startswith(POINTER):
        raise TokenizerError(
            f"{file}: a git-lfs pointer, not the file itself",
            given=f"{len(content)} bytes of text",
            try_="git lfs pull  in that folder, or download the file again",
        )
    return content


def read_json(file: Path) -> dict[str, Any]:
    """The object in `file`, {} when there is no such file."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(read(file).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{file}: not JSON", given=error, try_="download the file again") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{file}: not a JSON object", given=type(content).__name__)
    return content


def special_tokens(
    folder: Path,
    id_to_token: Callable[[int], str | None],
    names: Mapping[str, str] | None = None,
    add_bos: bool | None = None,
) -> Special:
    """What the files of `folder` say. `names` and `add_bos` are what the tokenizer's own file says: they count where
    no other file says something else."""
    config = read_json(folder / "tokenizer_config.json")
    found = dict(names or {}) | _names(read_json(folder / "special_tokens_map.json")) | _names(config)
    generation, model = read_json(folder / "generation_config.json"), read_json(folder / "config.json")
    end_ids = _ids(generation.get("eos_token_id", model.get("eos_token_id")))
    for role in ("bos_token", "eos_token", "pad_token"):
        stated = _ids(generation.get(f"{role}_id")) or _ids(model.get(f"{role}_id"))
        token = id_to_token(stated[0]) if stated else None
        if role not in found and token is not None:
            found[role] = token
    adds = config.get("add_bos_token")
    return Special(
        names=found,
        others=tuple(_others(config)),
        add_bos=adds if isinstance(adds, bool) else add_bos,
        end_ids=end_ids,
        chat_template=_chat_template(folder, config),
    )


def added_tokens(folder: Path, size: int) -> list[tuple[int, str, dict[str, Any]]]:
    """(id, text, flags) of tokens that `added_tokens.json` and `added_tokens_decoder` put behind a vocabulary of
    `size`, or that they describe inside it; by id. Raises TokenizerError for ids with a gap between them."""
    tokens: dict[int, tuple[str, dict[str, Any]]] = {}
    for text, id in read_json(folder / "added_tokens.json").items():
        if not isinstance(id, int):
            raise TokenizerError(f"{folder / 'added_tokens.json'}: an id that is no number", given=f"{text}: {id}")
        tokens[id] = (text, {})
    tokens |= {id: (text, flags) for id, text, flags in stated_tokens(folder)}
    behind = sorted(id for id in tokens if id >= size)
    if behind and behind != list(range(size, size + len(behind))):
        missing = next(id for id in range(size, behind[-1]) if id not in tokens)
        raise TokenizerError(
            f"{folder}: added tokens that do not follow the vocabulary",
            given=f"nothing with id {missing}, but '{tokens[behind[-1]][0]}' with id {behind[-1]}",
            allowed=f"ids {size}, {size + 1} ... without a gap",
            try_="the tokenizer files that belong together, from one source",
        )
    return [(id, *tokens[id]) for id in sorted(tokens)]


def stated_tokens(folder: Path) -> list[tuple[int, str, dict[str, Any]]]:
    """(id, text, flags) of each token in `added_tokens_decoder` of tokenizer_config.json; by id."""
    decoder = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    found = []
    for id, token in decoder.items():
        content = _content(token)
        if content is not None and str(id).isdigit():
            found.append((int(id), content, token if isinstance(token, dict) else {}))
    return sorted(found, key=lambda one: one[0])


def _content(token: Any) -> str | None:
    """A token is written as a string, or as an object with flags."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def _names(config: dict[str, Any]) -> dict[str, str]:
    found = {role: _content(config.get(role)) for role in NAMED}
    return {role: token for role, token in found.items() if token is not None}


def _others(config: dict[str, Any]) -> list[str]:
    listed = [config.get("additional_special_tokens"), config.get("extra_special_tokens")]
    tokens = [token for some in listed for token in (some.values() if isinstance(some, dict) else some or ())]
    decoder = config.get("added_tokens_decoder") or {}
    tokens += [decoder[id] for id in sorted(decoder, key=int) if decoder[id].get("special")]
    return [text for text in map(_content, tokens) if text is not None]


def _ids(value: Any) -> tuple[int, ...]:
    """The ids among what a config states; the first Llamas say -1 for a token that they have not."""
    listed = value if isinstance(value, list) else [value]
    return tuple(id for id in listed if isinstance(id, int) and not isinstance(id, bool) and 0 <= id < 1 << 31)


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {entry.get("name"): entry.get("template") for entry in template}.get("default")
    return template if isinstance(template, str) else None
