"""Checks a tree of plain values against a type and finds every fault; msgspec's own stops at the first."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect

from gpuward_supervisor.config.findings import Findings
from gpuward_supervisor.config.problems import Path, key_text, nearest
from gpuward_supervisor.config.schema import ADVICE, EXPECTED, ConfigFile

#: Stands for a value that was refused and is left out.
_LEFT_OUT: Any = object()

#: Last part of a key -> what a number under it counts.
_UNITS = {"_s": " of seconds", "_bytes": " of bytes"}


def sound_part(tree: dict[str, object], table: type[msgspec.Struct], findings: Findings) -> dict[str, object]:
    """The part of ``tree`` that fits ``table``; every fault goes to ``findings``.

    What is returned converts to ``table`` without an error: keys that do not fit are left out, so that the
    checks that compare settings with each other can still be made.
    """
    info = _type_info(table)
    assert isinstance(info, inspect.StructType)
    return _table(tree, info, (), findings)


def type_at(table: type[msgspec.Struct], path: tuple[str, ...]) -> inspect.Type:
    """Type of the key at ``path`` below ``table``, less metadata and None.

    Raises:
        KeyError: there is no such key.
    """
    info = _type_info(table)
    for key in path:
        if not isinstance(info, inspect.StructType):
            raise KeyError(key_text(path))
        fields = {field.encode_name: field.type for field in info.fields}
        if key not in fields:
            raise KeyError(key_text(path))
        info = _plain(fields[key])
    return info


@cache
def _type_info(table: type[msgspec.Struct]) -> inspect.Type:
    return inspect.type_info(table)


def _table(
    tree: dict[str, object], info: inspect.StructType, path: Path, findings: Findings
) -> dict[str, object]:
    fields = {field.encode_name: field.type for field in info.fields}
    sound = {}
    for key, value in tree.items():
        if key not in fields:
            findings.refuse((*path, key), value, "there is no such key", _advice(key, path, list(fields)))
        elif (kept := _value(value, fields[key], (*path, key), findings)) is not _LEFT_OUT:
            sound[key] = kept
    return sound


def _advice(key: str, path: Path, known: list[str]) -> str:
    """What to write in place of a key that does not exist."""
    special = ADVICE.get((*path, key))
    if special is not None:
        return special
    # A slip of the finger is likelier than a wrong table, unless the key exists elsewhere as it stands.
    elsewhere = [place for place in _places(_type_info(ConfigFile), key) if place != key_text(path)]
    if elsewhere:
        return f"it belongs into [{elsewhere[0]}]"
    meant = nearest(key, known)
    return f"did you mean `{meant}`?" if meant else f"known here: {', '.join(known)}"


def _places(info: inspect.Type, key: str, path: Path = ()) -> list[str]:
    """Tables that have this key."""
    table = _plain(info)
    if not isinstance(table, inspect.StructType):
        return []
    found = [key_text(path)] if path and any(field.encode_name == key for field in table.fields) else []
    for field in table.fields:
        found += _places(field.type, key, (*path, field.encode_name))
    return found


def _value(value: object, info: inspect.Type, path: Path, findings: Findings) -> Any:
    expected = _expected(info, str(path[-1]))
    match _plain(info):
        case inspect.StructType() as table:
            if isinstance(value, dict):
                return _table(value, table, path, findings)
            example = f"[{key_text(path)}]" if isinstance(path[-1], str) else f"[[{key_text(path[:-1])}]]"
            findings.refuse(path, value, f"a table: write {example} above its keys")
            return _LEFT_OUT
        case inspect.VarTupleType() as array:
            if isinstance(value, list):
                return _array(value, array, path, findings)
            table_wanted = isinstance(_plain(array.item_type), inspect.StructType)
            findings.refuse(
                path, value, f"tables: write [[{key_text(path)}]] above each" if table_wanted else expected
            )
            return _LEFT_OUT
        case inspect.DictType() as mapping:
            return _mapping(value, mapping, path, findings, expected)
        case inspect.UnionType() as union:
            return _choice(value, union, path, findings, expected)
        case plain:
            if _fits(value, plain):
                return value
            findings.refuse(path, value, f"expected {expected}", _hint(value, plain))
            return _LEFT_OUT


def _array(value: list[object], info: inspect.VarTupleType, path: Path, findings: Findings) -> list[Any]:
    kept = (_value(item, info.item_type, (*path, number), findings) for number, item in enumerate(value))
    # A table that is wrong in parts keeps its place, so that later findings still name the right one.
    return [item for item in kept if item is not _LEFT_OUT]


def _mapping(value: object, info: inspect.DictType, path: Path, findings: Findings, expected: str) -> Any:
    if not isinstance(value, dict):
        findings.refuse(path, value, f"expected {expected}")
        return _LEFT_OUT
    kept = {key: _value(item, info.value_type, (*path, key), findings) for key, item in value.items()}
    return {key: item for key, item in kept.items() if item is not _LEFT_OUT}


def _choice(value: object, info: inspect.UnionType, path: Path, findings: Findings, expected: str) -> Any:
    for kind in info.types:
        plain = _plain(kind)
        if isinstance(plain, inspect.VarTupleType):
            if isinstance(value, list):
                return _array(value, plain, path, findings)
        elif _fits(value, plain):
            return value
    findings.refuse(path, value, f"expected {expected}")
    return _LEFT_OUT


def _fits(value: object, info: inspect.Type) -> bool:
    match info:
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.IntType():
            return isinstance(value, int) and not isinstance(value, bool) and _in_range(value, info)
        case inspect.FloatType():
            if isinstance(value, bool) or not isinstance(value, int | float):
                return False
            return math.isfinite(value) and _in_range(value, info)
        case inspect.StrType():
            return (
                isinstance(value, str)
                and len(value) >= (info.min_length or 0)
                and (info.pattern is None or re.search(info.pattern, value) is not None)
            )
        case inspect.EnumType():
            return isinstance(value, str) and value in {member.value for member in info.cls}
        case inspect.LiteralType():
            return isinstance(value, str) and value in info.values
        case _:
            raise AssertionError(f"{info} does not occur in the schema")


def _in_range(value: float, info: inspect.IntType | inspect.FloatType) -> bool:
    return (
        (info.ge is None or value >= info.ge)
        and (info.gt is None or value > info.gt)
        and (info.le is None or value <= info.le)
        and (info.lt is None or value < info.lt)
    )


def _plain(info: inspect.Type) -> inspect.Type:
    """A type less its metadata and less None, which TOML does not have."""
    while isinstance(info, inspect.Metadata):
        info = info.type
    if isinstance(info, inspect.UnionType):
        rest = tuple(kind for kind in info.types if not isinstance(kind, inspect.NoneType))
        return _plain(rest[0]) if len(rest) == 1 else inspect.UnionType(rest)
    return info


def _expected(info: inspect.Type, key: str) -> str:
    said = _said(info)
    if said:
        return said
    match _plain(info):
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType() as number:
            return f"a whole number{_unit(key)}{_range_text(number)}"
        case inspect.FloatType() as number:
            return f"a number{_unit(key)}{_range_text(number)}"
        case inspect.StrType() as text:
            return "a text that is not empty" if text.min_length else "a text"
        case inspect.EnumType() as choice:
            return _one_of([member.value for member in choice.cls])
        case inspect.LiteralType() as choice:
            return _one_of(list(choice.values))
        case inspect.VarTupleType() as array:
            return f"a list of: {_expected(array.item_type, '')}"
        case inspect.DictType():
            return "a table of names and texts"
        case inspect.UnionType() as union:
            return ", or ".join(_expected(kind, key) for kind in union.types)
        case _:
            return "a table"


def _said(info: inspect.Type) -> str:
    while isinstance(info, inspect.Metadata):
        if info.extra and EXPECTED in info.extra:
            return str(info.extra[EXPECTED])
        info = info.type
    if isinstance(info, inspect.UnionType):
        rest = [kind for kind in info.types if not isinstance(kind, inspect.NoneType)]
        return _said(rest[0]) if len(rest) == 1 else ""
    return ""


def _one_of(values: list[Any]) -> str:
    return "one of " + ", ".join(f'"{value}"' for value in values)


def _unit(key: str) -> str:
    return next((unit for ending, unit in _UNITS.items() if key.endswith(ending)), "")


def _range_text(info: inspect.IntType | inspect.FloatType) -> str:
    low = f"{info.ge:g}" if info.ge is not None else (f"above {info.gt:g}" if info.gt is not None else None)
    high = _number(info.le) if info.le is not None else None
    if low is None:
        return f" of at most {high}" if high is not None else ""
    if high is None:
        return f" {low}" if info.gt is not None else f" of {_number(info.ge)} or more"
    return f" {low} and at most {high}" if info.gt is not None else f" from {_number(info.ge)} to {high}"


def _number(value: float | None) -> str:
    assert value is not None
    return str(int(value)) if float(value).is_integer() else f"{value:g}"


def _hint(value: object, info: inspect.Type) -> str:
    if isinstance(value, str) and isinstance(info, inspect.IntType | inspect.FloatType):
        try:
            float(value)
        except ValueError:
            return ""
        return f"write {value.strip()} without quotes"
    if isinstance(value, str) and isinstance(info, inspect.BoolType) and value.lower() in {"true", "false"}:
        return f"write {value.lower()} without quotes"
    if isinstance(value, str) and isinstance(info, inspect.EnumType):
        meant = nearest(value, [str(member.value) for member in info.cls])
        return f'did you mean "{meant}"?' if meant else ""
    return ""
