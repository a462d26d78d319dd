"""The space language as a JSON schema, for completion, hover text and errors in editors.

The schema accepts everything that the parser accepts. Only the parser refuses what a schema cannot express:
`low > high`, a step that does not divide its range, `low <= 0` with `log`, a duration of `0s`, 2.0 where a whole number
is needed, 1 beside true in a choice, a quoted number with `_` in it, and a `start` outside the space of its file.

`defaultSnippets`, `markdownDescription`, `errorMessage` and `patternErrorMessage` are extensions of
yaml-language-server; other tools ignore them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from imgcls_search import durations
from imgcls_search.measures import bounds
from imgcls_search.signature import REQUIRED, Arg, Catalog, Fields, Leaf, OneOf
from imgcls_search.space.problems import join, plain
from imgcls_search.space.scalars import DECIMAL, FLOAT
from imgcls_search.space.study_section import DIRECTIONS, NAME, SIDES, limit_fields, study_fields

Schema = dict[str, Any]

_ANY = "*"
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
# Editors read YAML 1.2, in which 500_000 is a string; the parser reads it as a number.
_GROUPED = {kind: f"^(?=.*_){number.pattern}$" for kind, number in ((int, DECIMAL), (float, FLOAT))}


def schema(catalog: Catalog) -> Schema:
    """Return the schema of a space file, in the draft that yaml-language-server supports best."""
    sections = {
        "study": _study(catalog),
        **{key: _entry(entry, fixed=False) for key, entry in catalog.config.fields.items()},
        "limits": _limits(catalog),
        "start": _start(catalog),
    }
    forms = {name: form for leaf in _searched(catalog.config) for name, form in _forms(leaf).items()}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "description": "A search space of imgcls-search; see also: imgcls-search families",
        "type": "object",
        "properties": sections,
        "required": [key for key, entry in catalog.config.fields.items() if _is_required(entry)],
        "additionalProperties": False,
        "definitions": dict(sorted(forms.items())),
    }


def render(schema: Schema) -> str:
    """Return a schema as the text of its file."""
    return json.dumps(schema, indent=1) + "\n"


def _entry(entry: Leaf | OneOf | Fields, *, fixed: bool) -> Schema:
    match entry:
        case Leaf():
            return _leaf(entry, fixed=fixed or entry.arg.fixed)
        case OneOf():
            return _component(entry, fixed=fixed or entry.fixed)
        case Fields():
            return _section(entry, fixed=fixed)


def _section(fields: Fields, *, fixed: bool) -> Schema:
    """Return the schema of named arguments; null is allowed if all have defaults."""
    required = [key for key, entry in fields.fields.items() if _is_required(entry)]
    return {
        **_text(fields.doc),
        "type": "object" if required else ["object", "null"],
        "properties": {key: _entry(entry, fixed=fixed) for key, entry in fields.fields.items()},
        **({"required": required} if required else {}),
        "additionalProperties": False if fields.others is None else _entry(fields.others, fixed=fixed),
    }


def _component(component: OneOf, *, fixed: bool) -> Schema:
    """Return the schema of a component: options as keys, or the name of one option."""
    bare = [name for name, fields in component.options.items() if not _is_required(fields)]
    keys: Schema = {
        "type": "object" if _is_required(component) else ["object", "null"],
        "properties": {name: _section(fields, fixed=fixed) for name, fields in component.options.items()},
        "additionalProperties": False,
        "minProperties": 1,
        **({"maxProperties": 1} if fixed else {}),
    }
    names = f"{'exactly one' if fixed else 'one'} of {', '.join(component.options)}"
    notes = {"allowed": names if fixed else f"{names}; several keys are a choice", "default": component.default or ""}
    default = {"default": component.default} if component.default in bare else {}
    return {**_text(component.doc, **notes), **default, **_any([*([{"enum": bare}] if bare else []), keys])}


def _leaf(leaf: Leaf, *, fixed: bool) -> Schema:
    """Return the schema of an argument: a value, and a choice or a range if it may be searched."""
    forms = [] if fixed else [{"$ref": f"#/definitions/{name}"} for name in _forms(leaf)]
    default = {} if leaf.default is REQUIRED else {"default": plain(leaf.default)}
    search = leaf.arg.search
    snippets = _snippet(search, search) if search and not fixed else {}
    return {**_leaf_text(leaf, fixed=fixed), **default, **snippets, **_any(_values(leaf) + forms)}


def _forms(leaf: Leaf) -> dict[str, Schema]:
    """Return the searched forms of an argument; equal forms share a name and appear once in the file."""
    # Whole numbers are allowed for floats, so floats may also be searched in whole steps.
    kinds = [int, float] if float in leaf.types else [int] if int in leaf.types else []
    ranges = {_slug(f"range of {kind.__name__} {leaf.arg.bounds()}"): _range(kind, leaf.arg) for kind in kinds}
    return {_slug(f"choice of {leaf.describe()}"): _choice(_any(_values(leaf))), **ranges}


def _slug(text: str) -> str:
    """Return a name that needs no escaping in a reference: `range_of_int_ge_1`."""
    for sign, word in ((">=", "ge"), ("<=", "le"), (">", "gt"), ("<", "lt")):
        text = text.replace(sign, word)
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", text).strip("_")


def _values(leaf: Leaf) -> list[Schema]:
    """Return the schemas of the single values and lists that an argument accepts."""
    words = [literal for literal in leaf.literals if not (literal is None and leaf.types)]
    found: list[Schema] = []
    if words:
        found.append({"enum": [plain(word) for word in words]})
    if leaf.types:
        found.append(_scalar(leaf.types, leaf.arg, null=None in leaf.literals))
    if leaf.items:
        least, most = leaf.num_items or 1, {"maxItems": leaf.num_items} if leaf.num_items else {}
        found.append({"type": "array", "items": _scalar(leaf.items, leaf.arg), "minItems": least, **most})
    if leaf.names:
        found.append(_by_name(leaf.arg, leaf.names))
    return found


def _by_name(arg: Arg, depth: int) -> Schema:
    below = _by_name(arg, depth - 1) if depth > 1 else _scalar((float,), arg)
    return {"type": "object", "additionalProperties": below, "minProperties": 1}


def _scalar(kinds: tuple[type, ...], arg: Arg, *, null: bool = False) -> Schema:
    """Return the schema of one bool, number or string within the bounds."""
    names = [_TYPES[kind] for kind in kinds if not (kind is int and float in kinds)]
    number = float if float in kinds else int if int in kinds else None
    wanted = " or ".join([*(kind.__name__ for kind in kinds), *(["null"] if null else [])])
    message = f"allowed: {wanted} {arg.bounds()}".strip()
    grouped: Schema = {}
    if number and arg.duration:
        names.append("string")
        message = "allowed: " + Leaf(arg=arg, types=kinds, literals=(None,) if null else ()).describe()
        grouped = {"pattern": f"{_GROUPED[number]}|^{durations.PATTERN}$", "patternErrorMessage": message}
    elif number and str not in kinds:
        names.append("string")
        grouped = {"pattern": _GROUPED[number], "patternErrorMessage": message}
    names += ["null"] if null else []
    bounds = _bounds(arg) if number else {}
    return {"type": names[0] if len(names) == 1 else names, **bounds, **grouped, "errorMessage": message}


def _bounds(arg: Arg) -> Schema:
    pairs = {"minimum": arg.ge, "exclusiveMinimum": arg.gt, "maximum": arg.le, "exclusiveMaximum": arg.lt}
    return {key: bound for key, bound in pairs.items() if bound is not None}


def _choice(value: Schema) -> Schema:
    listed = {
        "description": "values to choose from",
        "type": "array",
        "items": value,
        "minItems": 1,
        "uniqueItems": True,
    }
    return {
        **_snippet("{choice: [a, b]}", "{choice: [$1]}"),
        "type": "object",
        "properties": {"choice": listed},
        "required": ["choice"],
        "additionalProperties": False,
    }


def _range(kind: type, arg: Arg) -> Schema:
    name = kind.__name__
    ends = {
        "description": "the lowest and the highest value",
        "type": "array",
        "items": _scalar((kind,), arg),
        "minItems": 2,
        "maxItems": 2,
    }
    log = {"description": "draw evenly over orders of magnitude; low > 0 must hold", "type": "boolean"}
    step = {"description": "high - low must be a multiple of it", **_scalar((kind,), Arg("", gt=0))}
    return {
        **_snippet(f"{{{name}: [low, high]}}", f"{{{name}: [$1, $2]}}"),
        "type": "object",
        "properties": {name: ends, "log": log, "step": step},
        "required": [name],
        "additionalProperties": False,
        "dependencies": {"step": {"properties": {"log": {"enum": [False]}}}},
    }


def _study(catalog: Catalog) -> Schema:
    found = _section(study_fields(catalog), fixed=True)
    found["properties"]["name"]["pattern"] = f"^{NAME.pattern}$"
    metrics = {name: {**_text(doc), "enum": list(DIRECTIONS)} for name, doc in catalog.metrics.items()}
    has_default = catalog.default_metric in catalog.metrics
    found["properties"]["objectives"] = {
        **_text(
            "what the search is for; several metrics make a Pareto front",
            allowed=", ".join([*catalog.metrics, *catalog.class_scores]),
        ),
        **({"default": {catalog.default_metric: "maximize"}} if has_default else {}),
        "type": ["object", "null"] if has_default else "object",
        "properties": metrics,
        **_patterns(
            {name: {**_text(doc), "enum": list(DIRECTIONS)} for name, (_, doc) in catalog.class_scores.items()}, catalog
        ),
        "additionalProperties": False,
        "minProperties": 1,
    }
    if not has_default:
        found |= {"type": "object", "required": [*found.get("required", []), "objectives"]}
    return found


def _limits(catalog: Catalog) -> Schema:
    """Return the schema of limits: one number for a size or a cost, one or two sides for a score."""
    found = _section(limit_fields(catalog), fixed=True)
    found["properties"] |= {name: _sides(name, doc) for name, doc in catalog.scores.items()}
    return {**found, **_patterns({name: _sides(name, doc) for name, (_, doc) in catalog.class_scores.items()}, catalog)}


def _sides(name: str, doc: str) -> Schema:
    low, high = bounds(name) or (-math.inf, math.inf)
    ends = {"minimum": low, "maximum": high}
    number = {"type": "number", **{key: end for key, end in ends.items() if math.isfinite(end)}}
    return {
        **_text(doc),
        "type": "object",
        "properties": dict.fromkeys(SIDES, number),
        "additionalProperties": False,
        "minProperties": 1,
    }


def _patterns(entries: Schema, catalog: Catalog) -> Schema:
    """Return the schemas of single-class metrics, keyed by name patterns."""
    if not entries:
        return {}
    return {"patternProperties": {f"^{catalog.class_scores[name][0]}$": entry for name, entry in entries.items()}}


def _start(catalog: Catalog) -> Schema:
    settings = {path: _setting(entry) for path, entry in _paths(catalog.config)}
    # A builder with further arguments of any name has one entry for all of them.
    named = {path: setting for path, setting in settings.items() if not path.endswith(_ANY)}
    others = {f"^{re.escape(path[: -len(_ANY)])}[^.]+$": settings[path] for path in settings if path not in named}
    setting = {
        "type": "object",
        "properties": named,
        **({"patternProperties": others} if others else {}),
        "additionalProperties": False,
    }
    text = _text("known-good configurations, tried first; what one leaves out is sampled")
    return {**text, "type": ["array", "null"], "items": setting}


def _setting(entry: Leaf | OneOf) -> Schema:
    if isinstance(entry, OneOf):
        return {**_text(entry.doc), "enum": list(entry.options)}
    # The study stores lists and numbers by name as strings, and `best` prints them so; users may paste them.
    pasted = [{"type": "string", "pattern": r"^\["}] if entry.items else []
    pasted += [{"type": "string", "pattern": r"^\{"}] if entry.names else []
    return {**_leaf_text(entry, fixed=True), **_any(_values(entry) + pasted)}


def _paths(fields: Fields, path: str = "") -> Iterator[tuple[str, Leaf | OneOf]]:
    """Yield the arguments and components below, each with its dotted path; further arguments end in `.*`."""
    others = {} if fields.others is None else {_ANY: fields.others}
    for key, entry in {**fields.fields, **others}.items():
        below = join(path, key)
        if isinstance(entry, Fields):
            yield from _paths(entry, below)
            continue
        yield below, entry
        if isinstance(entry, OneOf):
            yield from _paths(Fields(fields=entry.options), below)


def _searched(fields: Fields) -> Iterator[Leaf]:
    """Yield the arguments below that may be searched."""
    for entry in (*fields.fields.values(), *([fields.others] if fields.others else [])):
        match entry:
            case Leaf(arg=Arg(fixed=False)):
                yield entry
            case OneOf(fixed=False):
                yield from _searched(Fields(fields=entry.options))
            case Fields():
                yield from _searched(entry)


def _is_required(entry: Leaf | OneOf | Fields) -> bool:
    """Tell whether a file without this entry is refused."""
    match entry:
        case Leaf():
            return entry.default is REQUIRED
        case OneOf():
            return entry.default is None or _is_required(entry.options[entry.default])
        case Fields():
            return any(_is_required(below) for below in entry.fields.values())


def _any(forms: list[Schema]) -> Schema:
    return forms[0] if len(forms) == 1 else {"anyOf": forms}


def _leaf_text(leaf: Leaf, *, fixed: bool) -> Schema:
    default = "" if leaf.default is REQUIRED else json.dumps(plain(leaf.default))
    search = leaf.arg.search or ""
    return _text(
        leaf.arg.doc, allowed=leaf.describe(), default=default, **({} if fixed else {"worth searching": search})
    )


def _text(doc: str, **notes: str) -> Schema:
    """Return the text for editors: a sentence, followed by the notes."""
    known = {name: note for name, note in notes.items() if note}
    if not doc and not known:
        return {}
    lines = [doc, *(f"{name}: {fact}" for name, fact in known.items())]
    text = {"description": "\n".join(line for line in lines if line)}
    if not known:
        return text
    marked = [doc, *(f"{name}: `{fact}`" for name, fact in known.items())]
    return {**text, "markdownDescription": "\n\n".join(line for line in marked if line)}


def _snippet(label: str, body: str) -> Schema:
    """Return text that yaml-language-server offers to insert, with $1 and $2 as input positions."""
    return {"defaultSnippets": [{"label": label, "body": body}]}
