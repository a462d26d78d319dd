"""The arguments of each model family, from the catalog, for users and scripts."""

from __future__ import annotations

from typing import Any, TypedDict

from imgcls_search.errors import UserError, closest
from imgcls_search.signature import REQUIRED, Catalog, Fields, Leaf, OneOf
from imgcls_search.space.problems import plain, printable


class Argument(TypedDict):
    """A named argument of a builder."""

    name: str
    allowed: str
    required: bool
    default: Any
    search: str | None
    """A recommended search range, None if there is none."""

    doc: str


class OtherArguments(TypedDict):
    """Further arguments with any name."""

    allowed: str
    doc: str


class Family(TypedDict):
    """A family and its arguments, as plain JSON."""

    name: str
    doc: str
    arguments: list[Argument]
    others: OtherArguments | None


def families(catalog: Catalog) -> dict[str, str]:
    """Return the families, each with a one-sentence description."""
    return {name: fields.doc for name, fields in _families(catalog).items()}


def family(catalog: Catalog, name: str) -> Family:
    """Return the arguments of a family.

    Raises:
        UserError: there is no such family.
    """
    known = _families(catalog)
    if name not in known:
        near = closest(name, known)
        raise UserError(f"{printable(name)}: no such family; allowed: {', '.join(known)}{near}")
    fields = known[name]
    arguments = [_argument(*entry) for entry in fields.fields.items()]
    others: OtherArguments | None = None
    if fields.others is not None:
        others = {"allowed": fields.others.describe(), "doc": fields.others.arg.doc}
    return {"name": name, "doc": fields.doc, "arguments": arguments, "others": others}


def _families(catalog: Catalog) -> dict[str, Fields]:
    model = catalog.config.fields["model"]
    assert isinstance(model, OneOf)
    return dict(model.options)


def _argument(name: str, entry: Leaf | OneOf | Fields) -> Argument:
    assert isinstance(entry, Leaf), "a builder's arguments are leaves"
    required = entry.default is REQUIRED
    return {
        "name": name,
        "allowed": entry.describe(),
        "required": required,
        "default": None if required else plain(entry.default),
        "search": entry.arg.search,
        "doc": entry.arg.doc,
    }
