"""Compare two trials or two studies: compare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from imgcls_search.api.options import PathLikeText
from imgcls_search.api.study import Study
from imgcls_search.api.trial import Trial
from imgcls_search.errors import UserError
from imgcls_search.rounding import measured, rounded, without_long_numbers
from imgcls_search.words import counted

if TYPE_CHECKING:
    from imgcls_search.views.browse import ComparedStudies, ComparedTrials, Opened, TrialComparison


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The differences between two trials or two studies, and between their scores."""

    names: tuple[str, str]
    facts: ComparedTrials | ComparedStudies
    """Differences and scores, as plain values."""

    @property
    def is_of_studies(self) -> bool:
        """Whether this compares two studies, by their best trials."""
        return self.facts["kind"] == "studies"

    @property
    def of_trials(self) -> TrialComparison:
        """The comparison of the two trials, or of the best trials of the two studies."""
        return self.facts["best"] if self.facts["kind"] == "studies" else self.facts

    def differences(self) -> list[str]:
        """Return the differences, one sentence each."""
        found: list[str] = []
        if self.facts["kind"] == "studies":
            found += [without_long_numbers(line) for line in [*self.facts["space"], *self.facts["facts"]]]
            counts = [
                f"{counted('trial', count['total'])}, {counted('epoch', epochs)}"
                for count, epochs in zip(self.facts["trials"], self.facts["epochs"], strict=True)
            ]
            found.append(f"{self.names[0]}: {counts[0]}; {self.names[1]}: {counts[1]}")
            found.append(_chosen(self.facts))
        config = self.of_trials["config"] or ["the configurations are equal"]
        return [*found, *(without_long_numbers(line) for line in config)]

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return rows of each score and size: name, first, second, and their difference."""
        images = self.of_trials["val_images"]
        return [
            (
                name,
                measured(name, entry["first"], images),
                measured(name, entry["second"], images),
                measured(name, entry["change"], images, signed=True),
            )
            for name, entry in self.of_trials["measured"].items()
        ]

    def notes(self) -> list[str]:
        """Return notes on whether the scores are comparable."""
        found, epochs = [], self.of_trials["epochs"]
        if epochs[0] != epochs[1]:
            found.append(f"they trained for {epochs[0]} and {epochs[1]} epochs: their scores are not comparable")
        if self.of_trials["noise"] is not None:
            what = "accuracies" if "accuracy" in self.of_trials["measured"] else "subset accuracies"
            noise = rounded(self.of_trials["noise"])
            found.append(f"{what} that differ by less than {noise} may differ by chance alone (95 %)")
        return found

    def _repr_html_(self) -> str:
        from imgcls_search.api.frames import card, table

        first, second = self.names
        scores = table(("", first, second, "change"), self.rows())
        return card(f"{first} and {second}", [*self.differences(), *self.notes()], scores)


def compare(
    first: str | Study | Trial,
    second: str | Study | Trial,
    *,
    studies: PathLikeText = Path("studies"),
    storage: str | None = None,
) -> Comparison:
    """Compare two trials or two studies: what differs, and how the scores differ.

    Args:
        first: A study by its name or as an object; or a trial, as an object or as `STUDY:NUMBER`.
        second: The same.
        studies: The folder of the studies that are given by their names.
        storage: A PostgreSQL database of studies instead of SQLite files.

    Raises:
        UserError: One is a trial and the other a study, or there is no such trial or study.
    """
    from imgcls_search.study.address import settle
    from imgcls_search.views.browse import compare_opened, open_named

    at = settle(storage)
    opened: list[Opened] = []
    names: list[str] = []
    for given in cast("tuple[Any, Any]", (first, second)):
        if isinstance(given, Study):
            names.append(given.name)
            opened.append((given._record(), None))
        elif isinstance(given, (str, Trial)):
            names.append(given if isinstance(given, str) else f"{given.study}:{given.number}")
            opened.append(open_named(Path(studies), names[-1], at))
        else:
            allowed = "a study or a trial, or its name: 'vit-digits' or 'vit-digits:7'"
            raise UserError(f"compare: got a {type(given).__name__}; allowed: {allowed}")
    return Comparison(names=(names[0], names[1]), facts=compare_opened((names[0], names[1]), *opened))


def _chosen(found: ComparedStudies) -> str:
    """Return the best trials of two studies, and the rule that chose them if several are on a front."""
    by, of = found["chosen"]["by"], found["chosen"]["of"]
    names = [
        f"trial {trial}" + (f" (of {count} on the front)" if count > 1 else "")
        for trial, count in zip(found["best"]["trials"], of, strict=True)
    ]
    if of == [1, 1]:
        return f"their best, {' and '.join(names)}:"
    rules = [f"{direction} {metric}" for metric, direction in by]
    if rules[0] == rules[1]:
        return f"their best by one objective ({rules[0]}), {' and '.join(names)}; others: compare STUDY:N STUDY:N"
    parts = [f"{name} by {rule}" for name, rule in zip(names, rules, strict=True)]
    return f"their best, each by its own first objective, {' and '.join(parts)}; others: compare STUDY:N STUDY:N"
