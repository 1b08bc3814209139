"""YAML as plain values that remember their lines, so that an error can say `recipe.yaml:6`.

PyYAML reads YAML 1.1, where `2e-4` is a string, `no` is false, `1:30` is ninety and `010` is eight. Here scalars are
read as YAML 1.2 and people mean them: `2e-4` is a number, only `true` and `false` are booleans, and nothing else is
converted. A key written twice is refused (PyYAML keeps the last), and so is every tag that would build an object.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lorikeet.base.errors import RecipeError, nearest

Key = tuple[str | int, ...]

# aliases of aliases can make a page of YAML stand for gigabytes
MOST_VALUES = 100_000

_CORE = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """Composes nodes with YAML 1.2's idea of what a plain scalar is."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - PyYAML's own attribute, emptied


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(_CORE + _tag, re.compile(f"(?:{_pattern})$"), _first)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as something else; short lists stand on one line."""

    yaml_implicit_resolvers: dict[Any, Any] = {  # noqa: RUF012 - PyYAML's own attribute
        first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, []) + _Loader.yaml_implicit_resolvers.get(first, [])
        for first in {**yaml.SafeDumper.yaml_implicit_resolvers, **_Loader.yaml_implicit_resolvers}
    }

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> SequenceNode:
        return super().represent_sequence(tag, sequence, flow_style=True)

    def represent_str(self, data: str) -> ScalarNode:
        # line separators that YAML folds into spaces unless they are escaped
        return self.represent_scalar(f"{_CORE}str", data, style='"' if re.search("[\x85\u2028\u2029]", data) else None)

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(str, _Dumper.represent_str)


def dump(value: Any, *, one_line: bool = False) -> str:
    """Plain values as YAML that `parse` reads back equal."""
    flow, width = (True, 1 << 20) if one_line else (False, 120)
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=flow, width=width, allow_unicode=True, sort_keys=False)
    return text.strip().removesuffix("...").strip() if one_line else text


@dataclass
class Tree:
    """A mapping read from YAML and, for every key path in it, the place it was written: `recipe.yaml:6`."""

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, str] = field(default_factory=dict)

    def place(self, key: Key) -> str:
        """Where `key`, or the nearest thing around it, was written."""
        for end in range(len(key), -1, -1):
            if key[:end] in self.places:
                return self.places[key[:end]]
        return self.name

    def put(self, key: Key, value: Any, place: str) -> None:
        """Set `key` to `value`, making the mappings on the way; what `key` held before is forgotten."""
        node: Any = self.values
        for depth, part in enumerate(key[:-1], start=1):
            if isinstance(node, dict) and not isinstance(node.get(part), dict | list):
                node[part] = {}
                self.places[key[:depth]] = place
            node = node[part]
        node[key[-1]] = value
        self.places = {old: at for old, at in self.places.items() if old[: len(key)] != key}
        self.places[key] = place


def read(path: Path) -> Tree:
    """The mapping in a YAML file. Raises RecipeError, with the line, for anything that is not one mapping."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        near = nearest(path.name, sorted(one.name for one in path.parent.glob("*.y*ml")))
        proposal = str(path.parent / near) if near else "lorikeet init --data FILE, which writes one"
        raise RecipeError(f"there is no file '{path}'", try_=proposal) from None
    except IsADirectoryError:
        raise RecipeError(
            f"'{path}' is a folder, not a recipe", allowed="a YAML file", try_=str(path / "recipe.yaml")
        ) from None
    except OSError as error:
        raise RecipeError(f"cannot read '{path}'", given=error.strerror, allowed="a YAML file you may read") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(
            "the recipe is not UTF-8 text", given=f"byte 0x{error.object[error.start]:02x}   ({path}:{line})"
        ) from None
    return parse(text, str(path))


def parse(text: str, name: str) -> Tree:
    """The mapping in `text`; `name` stands before the line in every place."""
    node = _compose(text, name)
    tree = Tree(name, places={(): name})
    if node is None:
        raise RecipeError(f"{name} is empty", allowed="a mapping of sections", try_="output_dir: runs/first")
    if not isinstance(node, MappingNode):
        raise RecipeError(
            "a recipe is a mapping of sections",
            given=f"{_kind(node)}   ({name}:{node.start_mark.line + 1})",
            allowed="section: {option: value}",
            try_="output_dir: runs/first",
        )
    tree.values = _Reader(tree).value(node, ())
    return tree


def scalar(text: str) -> Any:
    """The value of one `key=value` override, read as YAML; `name` for errors is the command line."""
    name = "the command line"
    node = _compose(text, name, single_line=True)
    return None if node is None else _Reader(Tree(name)).value(node, ())


def _compose(text: str, name: str, single_line: bool = False) -> Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except RecursionError:
        raise RecipeError(
            "this is nested too deeply", given=f"{text.lstrip()[:60]}   ({name})", allowed="a few levels"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = name if mark is None or single_line else f"{name}:{mark.line + 1}"
        line = text.splitlines()[mark.line].strip() if mark and mark.line < len(text.splitlines()) else ""
        said = " ".join(part for part in (error.context, error.problem) if part)
        raise RecipeError(
            f"this is not YAML: {said}",
            given=f"{line[:100]}   ({place})",
            allowed="key: value, or {key: value, ...}; indent with spaces",
            try_="put the value in quotes" if single_line or "'%'" in said or "'@'" in said else None,
        ) from None
    except yaml.reader.ReaderError as error:
        line_number = text[: int(error.position)].count("\n") + 1
        raise RecipeError(
            "this is not YAML: a control character", given=f"#x{int(error.character):04x}   ({name}:{line_number})"
        ) from None


class _Reader:
    """Turns composed nodes into plain values and writes every key's place into `tree`."""

    def __init__(self, tree: Tree):
        self.tree = tree
        self.open: list[Node] = []
        self.count = 0

    def at(self, node: Node) -> str:
        name = self.tree.name
        return name if name == "the command line" else f"{name}:{node.start_mark.line + 1}"

    def value(self, node: Node, key: Key) -> Any:
        self.count += 1
        if node in self.open or self.count > MOST_VALUES:
            raise RecipeError("an alias (*) repeats itself without end", given=f"at   ({self.at(node)})")
        if not isinstance(node, ScalarNode):
            self.open.append(node)
            value = self.mapping(node, key) if isinstance(node, MappingNode) else self.sequence(node, key)
            self.open.pop()
            return value
        return self.scalar(node)

    def sequence(self, node: Node, key: Key) -> list[Any]:
        assert isinstance(node, SequenceNode)
        self.plain_tag(node, "seq")
        items = []
        for index, item in enumerate(node.value):
            self.tree.places[key + (index,)] = self.at(item)
            items.append(self.value(item, key + (index,)))
        return items

    def mapping(self, node: MappingNode, key: Key) -> dict[str, Any]:
        self.plain_tag(node, "map")
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for name_node, item in node.value:
            name = name_node.value if isinstance(name_node, ScalarNode) else None
            if name == "<<" and name_node.tag == f"{_CORE}merge":
                for source in item.value if isinstance(item, SequenceNode) else [item]:
                    merged = {**self.merge(source, key), **merged}
                continue
            if name is None or name == "":
                raise RecipeError(
                    "a key must be a word", given=f"{_kind(name_node)}   ({self.at(name_node)})", allowed="key: value"
                )
            if name in found:
                dotted = ".".join(map(str, key + (name,)))
                raise RecipeError(
                    f"{dotted}: written twice",
                    given=f"first in {self.tree.places[key + (name,)]}   (again in {self.at(name_node)})",
                    allowed="each key once",
                    try_="remove one of the two",
                )
            self.tree.places[key + (name,)] = self.at(name_node)
            found[name] = self.value(item, key + (name,))
        return {**merged, **found}

    def merge(self, node: Node, key: Key) -> dict[str, Any]:
        if not isinstance(node, MappingNode):
            raise RecipeError(
                "'<<' merges a mapping", given=f"{_kind(node)}   ({self.at(node)})", allowed="<<: *anchor_of_a_mapping"
            )
        before = dict(self.tree.places)
        value = self.value(node, key)
        self.tree.places |= before  # a key the mapping itself wrote keeps its own line
        assert isinstance(value, dict)
        return value

    def scalar(self, node: ScalarNode) -> Any:
        text = node.value
        try:
            match node.tag.removeprefix(_CORE):
                case "str" | "merge":
                    return text
                case "null":
                    return None
                case "bool":
                    return text.lower() == "true"
                case "int":
                    return int(text)
                case "float":
                    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:  # an explicit tag on text it does not fit, or a number of thousands of digits
            pass
        return self.refuse_tag(node)

    def plain_tag(self, node: Node, wanted: str) -> None:
        if node.tag != _CORE + wanted:
            self.refuse_tag(node)

    def refuse_tag(self, node: Node) -> NoReturn:
        raise RecipeError(
            "this value cannot be read",
            given=f"{node.tag.replace(_CORE, '!!')} {str(node.value)[:60]}   ({self.at(node)})",
            allowed="text, numbers, true, false, null, lists and mappings, without tags",
        )


def _kind(node: Node) -> str:
    if isinstance(node, ScalarNode):
        return f"the text '{node.value[:60]}'"
    return "a list" if isinstance(node, SequenceNode) else "a mapping"
