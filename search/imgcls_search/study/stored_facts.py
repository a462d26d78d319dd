"""The facts of a study: read once, and written to its database when they change."""

from __future__ import annotations

from typing import Any, Literal, cast, overload

import optuna

from imgcls_search.study import database
from imgcls_search.study.facts import (
    CodeFact,
    DataFact,
    KnownBackbone,
    Opening,
    Request,
    Run,
    SpaceFact,
    StudyFacts,
    UsageFact,
    WeightsFact,
)
from imgcls_search.study.result_facts import Ablation, AutoFact, Confirmation
from imgcls_search.study.shape import is_of
from imgcls_search.study.writes import Writes


class StoredFacts:
    """The facts of a study."""

    def __init__(self, study: optuna.Study, rows: Writes) -> None:
        """Read everything once."""
        self.study = study
        self.rows = rows
        self.facts = cast(StudyFacts, dict(study.user_attrs))
        self.objectives = _objectives(self.facts)

    @property
    def score_limits(self) -> tuple[str, ...]:
        """The scores that the limits of its space name."""
        limits = self.facts.get("space", {}).get("limits", {})
        return tuple(name for name, limit in limits.items() if isinstance(limit, dict))

    @property
    def named_metrics(self) -> tuple[str, ...]:
        """The metrics that its objectives and the limits of scores name."""
        return tuple(dict.fromkeys([*(metric for metric, _ in self.objectives), *self.score_limits]))

    @property
    def val_images(self) -> int | None:
        """Number of images behind a score, which decides how many digits to show; None if unknown.

        Those are the validation images, or those of all folds.
        """
        if "data" not in self.facts:
            return None
        return sum(self.facts["data"].get("folds", [])) or self.facts["data"]["images"].get("val")

    @property
    def where_scored(self) -> str:
        """The images that scores are from, in words."""
        folds = self.facts["data"].get("folds", []) if "data" in self.facts else []
        return f"by cross-validation in {len(folds)} folds" if folds else "on the validation split"

    @overload
    def fact(self, name: Literal["space"]) -> SpaceFact: ...

    @overload
    def fact(self, name: Literal["data"]) -> DataFact: ...

    def fact(self, name: Literal["space", "data"]) -> SpaceFact | DataFact:
        """Return a fact that every search stores when it creates its study.

        Raises:
            StudyError: it is missing.
        """
        if name not in self.facts:
            raise database.damaged(self._place, f"the study's {name} is missing")
        return self.facts[name]

    @property
    def _place(self) -> str:
        """The database of the study, for messages."""
        engine = self.rows.engine
        return self.study.study_name if engine is None else database.public_name(engine.url)

    def read_requests(self) -> None:
        """Read the requests that others have added since.

        Raises:
            StudyError: they are damaged.
        """
        if (requests := self.rows.read_fact("requests")) is not None:
            if not is_of(requests, list[Request]):
                raise database.damaged(self._place, "the study's requests are not as they were written")
            self.facts["requests"] = requests

    def refuse_request(self, which: str, reason: str) -> None:
        """Store why a request cannot be tried."""
        self.facts["requests"] = self.rows.mark_entry("requests", which, {"refused": reason})

    @overload
    def set_fact(self, name: Literal["confirmed"], value: Confirmation) -> None: ...

    @overload
    def set_fact(self, name: Literal["ablation"], value: Ablation) -> None: ...

    @overload
    def set_fact(self, name: Literal["data_root", "data_file", "unlabeled_root", "known_as"], value: str) -> None: ...

    @overload
    def set_fact(self, name: Literal["code"], value: dict[str, CodeFact]) -> None: ...
    @overload
    def set_fact(self, name: Literal["weights"], value: dict[str, WeightsFact]) -> None: ...

    @overload
    def set_fact(self, name: Literal["backbones"], value: dict[str, KnownBackbone]) -> None: ...

    @overload
    def set_fact(self, name: Literal["unlabeled"], value: dict[str, str]) -> None: ...

    @overload
    def set_fact(self, name: Literal["auto"], value: AutoFact) -> None: ...

    @overload
    def set_fact(self, name: Literal["usage"], value: UsageFact) -> None: ...

    @overload
    def set_fact(self, name: Literal["takes_requests"], value: bool) -> None: ...

    def set_fact(
        self,
        name: Literal[
            "code",
            "confirmed",
            "ablation",
            "weights",
            "backbones",
            "unlabeled",
            "auto",
            "usage",
            "takes_requests",
            "data_root",
            "data_file",
            "unlabeled_root",
            "known_as",
        ],
        value: Any,
    ) -> None:
        """Store a fact about the study as a whole."""
        self.rows.set_fact(name, value)
        self.facts[name] = value

    @overload
    def append_fact(self, name: Literal["runs"], entry: Run) -> None: ...

    @overload
    def append_fact(self, name: Literal["test_openings"], entry: Opening) -> None: ...

    @overload
    def append_fact(self, name: Literal["requests"], entry: Request) -> None: ...

    def append_fact(self, name: Literal["runs", "test_openings", "requests"], entry: Any) -> None:
        """Append to a list of facts about the study as a whole; other processes may append at the same time."""
        self.facts[name] = self.rows.append_fact(name, entry)


def _objectives(facts: StudyFacts) -> tuple[tuple[str, str], ...]:
    return tuple((metric, direction) for metric, direction in facts["objectives"])
