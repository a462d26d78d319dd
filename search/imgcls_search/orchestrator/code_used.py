"""User functions that a space names: store the digests of their sources in the study, and report changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from imgcls_search import digests, own_code
from imgcls_search.errors import UserError
from imgcls_search.models.custom import problem_of
from imgcls_search.space import Space
from imgcls_search.study.facts import CodeFact
from imgcls_search.study.record import Record
from imgcls_search.training.custom_metrics import is_own_function


def references(document: Mapping[str, Any], metrics: Iterable[str]) -> dict[str, str]:
    """Return the functions that a document and its metrics name, each with the path of the setting."""
    found: dict[str, str] = {}
    for section in ("model", "data"):
        for function in _words(document.get(section, {}).get("custom", {}).get("function")):
            found.setdefault(function, f"{section}.custom.function")
    for metric in metrics:
        if is_own_function(metric):
            found.setdefault(metric, "study.objectives")
    return found


def refuse_unfit(space: Space) -> None:
    """Refuse functions that cannot be found, and arguments that a network's function does not accept.

    Raises:
        UserError: it names the function or argument, and its place in the space file.
    """
    named = references(space.document, space.named_metrics)
    for function, path in named.items():
        try:
            own_code.digest(function)
            builder = own_code.load(function) if path.startswith("model.") else None
        except UserError as error:
            # A metric has its own place in the space file.
            place = f"{path}.{function}" if path == "study.objectives" else path
            raise UserError(f"{space.locate(place)}: {path}: {error}") from error
        if builder is None:
            continue
        given = {name: value for name, value in space.document["model"]["custom"].items() if name != "function"}
        # Searched arguments are checked value by value when they are drawn.
        fixed = {name: value for name, value in given.items() if not isinstance(value, Mapping)}
        problem = problem_of(builder, fixed) if fixed == given else _unknown(builder, given)
        if problem is not None:
            below = f"model.custom.{problem[0]}"
            raise UserError(f"{space.locate(below)}: {below}: {problem[1]}")


def _unknown(builder: Any, given: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the first problem with the name of an argument; some arguments are searched."""
    for name in given:
        problem = problem_of(builder, {name: given[name]})
        if problem is not None and problem[1].startswith("unknown key"):
            return problem
    return None


def sources(space: Space) -> dict[str, str]:
    """Return the digest of the source of each function that a space names.

    Raises:
        UserError: one cannot be found.
    """
    named = references(space.document, space.named_metrics)
    return {function: own_code.digest(function) for function in named}


def note(record: Record, found: Mapping[str, str]) -> Iterator[str]:
    """Store the digests of sources in a study; yield a line for each that has changed since it was last stored."""
    known = record.facts.get("code", {})
    yield from differing(known, found)
    new = {function: _with(known.get(function), digest) for function, digest in found.items()}
    if {**known, **new} != known:
        record.set_fact("code", {**known, **new})


def differing(known: Mapping[str, CodeFact], found: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each source that has changed since a study last used it."""
    for function, digest in found.items():
        fact = known.get(function)
        if fact is not None and _latest(fact) != digest:
            yield (
                f"{function}: its source has changed since it was last used (sha256 {digests.shown(_latest(fact))}, is "
                f"now {digests.shown(digest)}); scores from before and after may not be comparable"
            )


def of_record(record: Record) -> list[str]:
    """Return a line for each function of a study whose source has changed or cannot be found."""
    known = record.facts.get("code", {})
    return [line for function in known for line in _now(function, known)]


def _now(function: str, known: Mapping[str, CodeFact]) -> list[str]:
    try:
        return list(differing(known, {function: own_code.digest(function)}))
    except UserError as error:
        return [str(error)]


def _latest(fact: CodeFact) -> str:
    return (fact.get("changed") or [fact["sha256"]])[-1]


def _with(fact: CodeFact | None, digest: str) -> CodeFact:
    if fact is None:
        return {"sha256": digest, "changed": []}
    return fact if _latest(fact) == digest else {**fact, "changed": [*fact["changed"], digest]}


def _words(value: Any) -> list[str]:
    """Return all strings that a value, or a choice among values, may be."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [word for below in value.values() for word in _words(below)]
    return [word for item in value for word in _words(item)] if isinstance(value, (list, tuple)) else []
