"""The space language and the spaces in the package: families, options, schema, shipped_spaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgcls_search.space.reference import Setting


def families(name: str | None = None) -> dict[str, Any]:
    """Return each model family with a sentence, or the settings of one with ranges worth searching.

    Raises:
        UserError: There is no such family.
    """
    from imgcls_search.catalog import catalog
    from imgcls_search.space.families import families as sentences
    from imgcls_search.space.families import family

    return dict(sentences(catalog())) if name is None else dict(family(catalog(), name))


def options(section: str | None = None) -> list[Setting]:
    """Return every setting of a space with its type, range, default and meaning.

    Args:
        section: Only this section, or the settings below this path, such as `training` or `model.vit`.

    Raises:
        UserError: There is no such section.
    """
    from imgcls_search.catalog import catalog
    from imgcls_search.space.reference import settings

    return settings(catalog(), section)


def schema() -> dict[str, Any]:
    """Return the JSON schema of spaces, for completion, help and errors in an editor."""
    from imgcls_search.catalog import catalog
    from imgcls_search.space.schema import schema as made

    return dict(made(catalog()))


def shipped_spaces() -> dict[str, str]:
    """Return the names of the spaces in the package, which `run` accepts, each with a sentence."""
    from imgcls_search.space import shipped

    return {name: shipped.about(name) for name in shipped.names()}
