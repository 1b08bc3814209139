"""A kind is a file: `adapter: {kind: lora}` is the options class in lorikeet/adapters/lora.py.

There is no registry. The file's name is the kind; a path (`kind: ./mine.py`) is someone else's kind. A plug-in
folder has a `_contract.py`; its files without an underscore are its kinds.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import operator
import pkgutil
import sys
from collections.abc import Iterator
from functools import lru_cache, reduce
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, SerializeAsAny, create_model
from pydantic_core import PydanticCustomError

from lorikeet.base import known_code
from lorikeet.base.errors import RecipeError, nearest
from lorikeet.base.files import sha256_file
from lorikeet.base.options import Options

OptionsType = TypeVar("OptionsType", bound=Options)
AnyType = TypeVar("AnyType")
_OWN: dict[tuple[str, str], type[Options]] = {}  # (folder, path): someone's own kinds that a recipe has named


def kinds(package: str) -> list[str]:
    """The names of the kinds in a plug-in folder, e.g. kinds("lorikeet.adapters")."""
    folder = importlib.import_module(package).__path__
    return sorted(module.name for module in pkgutil.iter_modules(folder) if not module.name.startswith("_"))


@lru_cache
def kind_class(package: str, contract: type[OptionsType], name: str) -> type[OptionsType]:
    """The subclass of `contract` in the file that `name` stands for.

    Raises RecipeError for a name that is no file of the folder, or a path without exactly one such class.
    """
    if name.endswith(".py"):
        return _only_class(_module_at(Path(name)), contract)
    known = kinds(package)
    if name not in known:
        folder = package.rsplit(".", 1)[-1]
        raise RecipeError(
            f"{folder}: there is no kind '{name}'",
            given=name,
            allowed=" ".join(known) + "  (or a path to your own .py file)",
            try_=nearest(name, known),
        )
    return _only_class(importlib.import_module(f"{package}.{name}"), contract)


def kind_field(package: str, contract: type[OptionsType], shorthand: bool = True, without: str = "") -> Any:
    """The type annotation of a recipe field that holds one kind: validates `{kind: name, ...}` or just `name`.

    The JSON schema is the union of the folder's kinds. A kind that holds one of the others leaves itself out by name.
    """
    known = [name for name in kinds(package) if name != without]
    # annotated without `from __future__` strings: pydantic needs the real objects
    classes = tuple(_with_kind(kind_class(package, contract, name), name) for name in known)
    union: Any = reduce(operator.or_, (*classes, contract))

    def resolve(value: Any) -> Any:
        if isinstance(value, contract):
            return value
        if isinstance(value, str) and shorthand:
            value = {"kind": value}
        if not isinstance(value, dict) or "kind" not in value:
            raise ValueError(f"needs a mapping with a 'kind' (one of: {' '.join(known)})")
        name = str(value["kind"])
        if name == without:
            raise ValueError(f"cannot be '{name}' again (one of: {' '.join(known)})")
        if name.endswith(".py"):
            known_code.check(name)
        try:
            chosen = kind_class(package, contract, name)
        except RecipeError as error:  # as one of pydantic's, so that it gets the key and the line
            told = {"what": error.what.split(": ", 1)[-1], "given": name, "allowed": error.allowed, "try": error.try_}
            raise PydanticCustomError("recipe_error", "{what}", told) from None
        made = _own_kind(package, chosen, name) if name.endswith(".py") else _with_kind(chosen, name)
        return made.model_validate(value)

    # someone's own kind is none of the union, and would be written as the bare contract: {}
    return Annotated[union, BeforeValidator(resolve), SerializeAsAny()]


def _own_kind(package: str, chosen: type[OptionsType], name: str) -> type[OptionsType]:
    """Someone's own kind, called by its path."""
    made: Any = _OWN.get((package, name))
    if made is None or made.__base__ is not chosen:
        own_kind: Any = (Literal[name], name)
        made = _OWN[package, name] = create_model(chosen.__name__, __base__=chosen, kind=own_kind)
    return made


def own_kinds(package: str, contract: type[OptionsType]) -> list[type[OptionsType]]:
    """Someone's own kinds of a plug-in folder that recipes have named in this process: no other code is run."""
    return [made for (folder, _), made in _OWN.items() if folder == package and issubclass(made, contract)]


def is_named(package: str, path: str) -> bool:
    """Whether a recipe has named this .py file in this process as a kind of a plug-in folder."""
    return any(folder == package and Path(name).resolve() == Path(path).resolve() for folder, name in _OWN)


def own_code(options: Options) -> list[str]:
    """sha256 of each .py file that a kind in `options`, or inside one of its options, is: its code decides too."""

    def found(value: Any) -> Iterator[str]:
        for name, inner in value.items() if isinstance(value, dict) else ():
            if name == "kind" and isinstance(inner, str) and inner.endswith(".py"):
                yield sha256_file(Path(inner))
            yield from found(inner)

    return list(found(options.model_dump(mode="json")))


def file_class(path: Path, contract: type[AnyType]) -> type[AnyType]:
    """The one subclass of `contract` that someone's own file defines. Raises RecipeError."""
    return _only_class(_module_at(path), contract)


def _with_kind(chosen: type[OptionsType], name: str) -> type[OptionsType]:
    field = chosen.model_fields.get("kind")
    if field is None or field.default != name:
        raise AssertionError(f"{chosen.__module__}: needs the field  kind: Literal[{name!r}] = {name!r}")
    return chosen


def _module_at(path: Path) -> ModuleType:
    if not path.is_file() or path.suffix != ".py":
        raise RecipeError(
            f"kind: {'not a .py file' if path.is_file() else 'no such file'} '{path}'",
            given=str(path),
            allowed="a .py file, seen from where you run lorikeet",
        )
    spec = importlib.util.spec_from_file_location(f"lorikeet_kind_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up while they are made
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # someone's own code can fail in any way
        del sys.modules[spec.name]
        raise RecipeError(f"{path} cannot be run", given=f"{type(error).__name__}: {error}"[:200]) from error
    known_code.remember(path)
    return module


def _only_class(module: ModuleType, contract: type[AnyType]) -> type[AnyType]:
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, contract) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise RecipeError(
            f"{module.__file__} must define exactly one subclass of {contract.__name__}",
            given=f"{len(found)}: {' '.join(value.__name__ for value in found)}" if found else "none",
        )
    return found[0]


def family_files(package: str, contract: type[AnyType]) -> list[type[AnyType]]:
    """The one subclass of `contract` in each file of a plug-in folder whose classes are not options."""
    return [_only_class(importlib.import_module(f"{package}.{name}"), contract) for name in kinds(package)]
