"""What each family of networks takes, told from the catalog for people and scripts."""

from __future__ import annotations

from typing import Any

from imgcls_search.errors import UserError, closest
from imgcls_search.signature import REQUIRED, Catalog, Fields, Leaf, OneOf
from imgcls_search.space.problems import plain, printable


def families(catalog: Catalog) -> dict[str, str]:
    """Return the families with one sentence about each."""
    return {name: fields.doc for name, fields in _families(catalog).items()}


def family(catalog: Catalog, name: str) -> dict[str, Any]:
    """Return what a family takes, as plain JSON; `search` is a range that makes sense, None where none is named.

    `others` is what further arguments of any name may be, None where the family takes none.

    Raises:
        UserError: there is no such family.
    """
    known = _families(catalog)
    if name not in known:
        near = closest(name, known)
        raise UserError(f"{printable(name)}: no such family; allowed: {', '.join(known)}{near}")
    fields = known[name]
    arguments = [_argument(*entry) for entry in fields.fields.items()]
    others = None if fields.others is None else {"allowed": fields.others.describe(), "doc": fields.others.arg.doc}
    return {"name": name, "doc": fields.doc, "arguments": arguments, "others": others}


def _families(catalog: Catalog) -> dict[str, Fields]:
    model = catalog.config.fields["model"]
    assert isinstance(model, OneOf)
    return dict(model.options)


def _argument(name: str, entry: Leaf | OneOf | Fields) -> dict[str, Any]:
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
