"""A recipe's YAML: read with the line of every key, problems told in one line, written for people. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from engine.errors import UsageError, nearest
from engine.reading import MB, read_bytes

Loc = tuple[int | str, ...]

_STR = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"
_SCIENTIFIC = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+", re.ASCII)
_SHOWN = 60
# A rule for each of a thousand layers is a tenth of it.
_LARGEST = 1 * MB


class Scientific(str):
    """An unquoted ``1e-2``: text to YAML 1.1, a number to whoever wrote it. A field of numbers may read it as one."""


@dataclass(frozen=True)
class Place:
    """A line (from 1) of a file."""

    file: str
    line: int


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: ``text`` is ``what: next step``, ``loc`` the keys that lead to it."""

    loc: Loc
    text: str
    place: Place | None = None
    missing: bool = False

    def __str__(self) -> str:
        if self.place:
            return f"{self.place.file}:{self.place.line}: {self.text}"
        in_rule = len(self.loc) > 2 and self.loc[0] == "rules" and isinstance(self.loc[1], int)
        return f"rule {int(self.loc[1]) + 1}: {self.text}" if in_rule else self.text


@dataclass(frozen=True)
class Document:
    """A file's top-level mapping with its node tree. ``problems`` are those that the values alone cannot show: a key given twice."""

    file: str
    root: yaml.Node
    fields: dict[str, Any]
    problems: tuple[Problem, ...] = field(default=())

    def line(self, loc: Loc) -> int:
        """The line (from 1) of the key or list item at ``loc``, or of the nearest one above it that the file has."""
        node, line = self.root, self.root.start_mark.line
        for part in loc:
            if isinstance(node, yaml.MappingNode):
                # The last of two equal keys is the one whose value counts.
                found = next(((key, value) for key, value in reversed(node.value) if key.value == part), None)
                if found is None:
                    break
                node, line = found[1], found[0].start_mark.line
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line
            else:
                break
        return int(line) + 1

    def place(self, loc: Loc, overrides: Mapping[str, Any]) -> Place | None:
        """Where the file says what is at ``loc``; None where an override said it."""
        given = overrides.get(str(loc[0])) if loc else None
        from_override = bool(loc) and loc[0] in overrides and (not isinstance(given, Mapping) or (len(loc) > 1 and loc[1] in given))
        return None if from_override else Place(self.file, self.line(loc))


def usage_error(found: list[Problem]) -> UsageError:
    """The first problem (by line; those without a line come first) and how many more there are."""
    # A missing key comes last: it often is the misspelt one that is reported on its own line.
    first = min(found, key=lambda problem: (problem.missing, problem.place.line if problem.place else 0))
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return UsageError(f"{first}{more}")


class _Loader(yaml.SafeLoader):
    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # PyYAML lets the errors of int() and date() through: 2024-13-45 looks like a date and is none.
            raise yaml.constructor.ConstructorError(None, None, f"{show(node.value)} cannot be read", node.start_mark) from None


def _construct_text(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    text = str(loader.construct_scalar(node))
    return Scientific(text) if node.style is None and _SCIENTIFIC.fullmatch(text) else text


_Loader.add_constructor(_STR, _construct_text)


def read(path: str | Path) -> Document:
    """Read a YAML file whose top level is a mapping; raises ``UsageError`` where there is none to read."""
    file = str(path) if str(path) and str(path).isprintable() else repr(str(path))
    text = _read_text(Path(path), file)
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise UsageError(f"{file}:1: the file is empty: add at least model: NAME")
        if not isinstance(root, yaml.MappingNode):
            line = root.start_mark.line + 1
            raise UsageError(f"{file}:{line}: the top level is not a mapping: write it as KEY: VALUE, such as model: simplecnn")
        found = tuple(replace(problem, place=Place(file, line)) for problem, line in _key_problems(root, set()))
        fields = loader.construct_document(root)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UsageError(f"{file}:{line}: a character that YAML does not allow: remove it") from None
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(file, error) from None
    except RecursionError:
        raise UsageError(f"{file}:1: nested too deeply: a recipe has no more than four levels") from None
    # A key that is not text has been reported with its line; validation would only repeat it.
    return Document(file, root, {key: value for key, value in fields.items() if isinstance(key, str)}, found)


def _read_text(path: Path, file: str) -> str:
    try:
        raw = read_bytes(path, _LARGEST)
    except FileNotFoundError:
        raise UsageError(f"{file}: no such file: check the path") from None
    except IsADirectoryError:
        raise UsageError(f"{file}: is a folder: name the recipe file in it, such as recipe.yaml") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{file}: cannot be read ({reason}): check the path and its permissions") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{file}:{line}: not UTF-8 text: save the file as UTF-8") from None


def _syntax_error(file: str, error: yaml.MarkedYAMLError) -> UsageError:
    mark = error.problem_mark or error.context_mark
    what = " ".join(f"{error.problem or error.context}".split())
    is_alias = "alias" in f"{error.context} {error.problem}"
    step = "quote a pattern that starts with *" if is_alias else "check the indentation, colons, brackets and quotes here"
    return UsageError(f"{file}:{mark.line + 1 if mark else 1}: not valid YAML ({what}): {step}")


def _key_problems(node: yaml.Node, seen: set[int]) -> Iterator[tuple[Problem, int]]:
    # An alias is the same node again, perhaps inside itself.
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _key_problems(item, seen)
    if not isinstance(node, yaml.MappingNode):
        return
    first: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag == _MERGE:
            raise yaml.constructor.ConstructorError(None, None, "<< is not supported in a recipe, write the keys out", key.start_mark)
        if not isinstance(key, yaml.ScalarNode) or key.tag != _STR:
            yield Problem((), f"key {show(key.value)} is not a name: remove or quote it"), line
        elif key.value in first:
            yield Problem((), f"key {show(key.value)} is given twice (first on line {first[key.value]}): remove one"), line
        else:
            first[key.value] = line
        yield from _key_problems(value, seen)


def problems(error: ValidationError, root: type[BaseModel], fields: Mapping[str, Any]) -> list[Problem]:
    """What pydantic found, each field once, in the words of ``root``'s field descriptions."""
    found: dict[Loc, Problem] = {}
    for item in error.errors(include_url=False):
        loc, kind = item["loc"], item["type"]
        leaf, model, info = _leaf(root, loc)
        if kind == "extra_forbidden":
            inside = f" in {_label(leaf)}" if leaf else ""
            found.setdefault(loc, Problem(loc, f"unknown key {show(loc[-1])}{inside}: {_known_key(str(loc[-1]), model)}"))
        elif kind == "invalid_key":
            found.setdefault(loc, Problem(loc, f"key {show(loc[-1])} is not a name: remove or quote it"))
        elif kind == "value_error":
            found.setdefault(leaf, Problem(loc, str(item["ctx"]["error"])))
        else:
            allowed = (info.description if info else None) or f"a mapping with {', '.join(model.model_fields)}"
            missing = kind == "missing" and loc == leaf
            noun = {"int_type": "a whole number, ", "float_type": "a number, "}.get(kind, "") if loc == leaf else ""
            verdict = f"missing: add {allowed}" if missing else f"{show(_dig(fields, leaf))}: must be {noun}{allowed}"
            found.setdefault(leaf, Problem(leaf, f"{_label(leaf)} is {verdict}", missing=missing))
    return list(found.values())


def _known_key(name: str, model: type[BaseModel]) -> str:
    parts = ((key, _model_in(info.annotation)) for key, info in model.model_fields.items())
    owners = [key for key, part in parts if part and key != "rules" and name in part.model_fields]
    return f"it belongs in {' or '.join(owners)}" if owners else nearest(name, tuple(model.model_fields))


def _leaf(root: type[BaseModel], loc: Loc) -> tuple[Loc, type[BaseModel], FieldInfo | None]:
    """The part of ``loc`` that names fields (and rules), the model it ends in, and the field."""
    model, info, depth = root, None, 0
    known: type[BaseModel] | None = root
    for index, part in enumerate(loc):
        if isinstance(part, int):
            if known is None:
                break
            info = None
        elif known is None or part not in known.model_fields:
            break
        else:
            info = known.model_fields[part]
            known = _model_in(info.annotation)
        model, depth = known or model, index + 1
    return loc[:depth], model, info


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)


def _label(loc: Loc) -> str:
    if loc[:1] == ("rules",) and len(loc) > 1:
        return ".".join(map(str, loc[2:])) or f"rule {int(loc[1]) + 1}"
    return ".".join(map(str, loc))


def _dig(value: Any, loc: Loc) -> Any:
    for part in loc:
        value = value[part]
    return value


def show(value: object) -> str:
    """A value as YAML would write it, on one line and short."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() if value.bit_length() > 128:
            return "a very large number"
        case str():
            return repr(str(value)) if len(value) <= _SHOWN else repr(f"{value[:_SHOWN]}…")
        case list() | tuple() if len(value) <= 8 and not any(isinstance(item, (Mapping, list, tuple, set)) for item in value):
            return f"[{', '.join(show(item) for item in value)}]"
        case list() | tuple() | set():
            return "a list"
        case Mapping():
            return "a mapping"
    return " ".join(str(value).split())[:_SHOWN]


class _Dumper(yaml.SafeDumper):
    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        # PyYAML writes the dashes of a list in a mapping unindented.
        super().increase_indent(flow, False)


class _Inline(dict[str, Any]):
    """A mapping written on one line."""


def _represent_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    inline = not any(isinstance(item, dict) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=inline)


def _represent_inline(dumper: yaml.SafeDumper, mapping: _Inline) -> yaml.Node:
    return dumper.represent_mapping("tag:yaml.org,2002:map", mapping, flow_style=True)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(_Inline, _represent_inline)


def dump(fields: Mapping[str, Any]) -> str:
    """YAML text in the order of ``fields``; what a rule gives to weights and activations is on one line each."""
    rules = [{key: _Inline(value) if isinstance(value, dict) else value for key, value in rule.items()} for rule in fields["rules"]]
    return yaml.dump({**fields, "rules": rules}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
