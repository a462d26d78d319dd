"""Combine several networks of a study into one model: ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls_search.api.options import component_of_data
from imgcls_search.errors import NoResultError, UserError, refuse_idle
from imgcls_search.rounding import measured

if TYPE_CHECKING:
    from imgcls_search.api.model import Model
    from imgcls_search.jobs.bundle.metrics import BundleMetrics
    from imgcls_search.jobs.ensemble.making import Made
    from imgcls_search.study.files import StudyFiles
    from imgcls_search.views.screens import Screens

HEADINGS = ("parameters", "MACs", "ms an image", "KB")
_SIZES = (("params", ",.0f"), ("macs", ",.0f"), ("latency_ms", ".3g"), ("size_kb", ",.0f"))


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Several networks of a study combined into one model."""

    weights: Path
    """The weights file, for `evaluate` and `export --bundle`."""

    folder: Path | None
    """The bundle for `load_model`; None if not requested."""

    facts: Mapping[str, Any]
    """Members, scores and sizes, see `jobs.ensemble.making.EnsembleSummary`; `student`, `test` and `bundle` if
    requested."""

    def load_model(self) -> Model:
        """Return the model, ready to predict.

        Raises:
            NoResultError: No bundle was written.
        """
        from imgcls_search.api.model import load_model

        if self.folder is None:
            raise NoResultError(f"{self.weights}: no bundle was written; use ensemble(bundle='model')")
        return load_model(self.folder)

    def rows(self) -> list[tuple[str, ...]]:
        """Return a row for each network, the ensemble and the best trial: picks, score and sizes."""
        found = self.facts
        metric, images = found["metric"], int(found["validation"]["images"])
        rows = [
            (str(one["trial"]), str(one["count"]), measured(metric, one["score"], images), *_sizes(one))
            for one in found["members"]
        ]
        for which, name, count in (
            ("ensemble", "ensemble", str(found["picks"])),
            ("winner", f"best: trial {found['winner']}", ""),
        ):
            score = measured(metric, found["validation"][which], images)
            rows.append((name, count, score, *_sizes(found["sizes"][which])))
        return rows

    @property
    def headings(self) -> tuple[str, ...]:
        """The headings of `rows`."""
        return ("trial", "picks", f"validation {self.facts['metric']}", *HEADINGS)

    def left_out(self) -> list[str]:
        """Return which trials were left out, one sentence each."""
        return [f"trial {number} is left out: {reason}" for number, reason in self.facts["left_out"].items()]

    def lines(self) -> list[str]:
        """Return notes on the scores, and the results of the student and on the test split."""
        found = self.facts
        images = f"{int(found['validation']['images']):,} validation images"
        if len(found["members"]) == 1:
            lines = [f"no other network improves on trial {found['winner']} on {images}"]
        else:
            lines = [f"picked on these {images}, so its score on them is optimistic; --test measures it"]
        if (student := found["student"]) is not None:
            score = measured(found["metric"], student["validation"], int(found["validation"]["images"]))
            lines.append(
                f"student (trial {student['trial']} taught by the ensemble): validation {found['metric']} {score}, "
                f"{student['params']:,.0f} parameters, {student['macs']:,.0f} MACs: {student['weights']}"
            )
        return [*lines, *(_of_test(found["metric"], found["test"]) if found["test"] is not None else ())]

    def _repr_html_(self) -> str:
        from imgcls_search.api.frames import card, table

        files = [str(self.weights), *([str(self.folder)] if self.folder is not None else [])]
        lines = [*self.left_out(), *self.lines(), f"files: {', '.join(files)}"]
        return card(f"Ensemble of {self.facts['study']}", lines, table(self.headings, self.rows()))


def combine(
    files: StudyFiles,
    screens: Screens,
    *,
    picks: int,
    trial: int | None,
    output: Path | None,
    bundle: Path | None,
    distill: Path | None,
    student: int | None,
    test: bool,
    data: str | None,
) -> Ensemble:
    """Pick an ensemble among the stored networks of a study; optionally distil, test and bundle it.

    Raises:
        UserError: an argument, the study, its images or a folder is not usable.
        NoResultError: no trial is finished, or a training failed.
    """
    if distill is None:
        refuse_idle({"--student": student}, "without --distill")
    if bundle is not None and distill is not None and bundle.absolute() == distill.absolute():
        raise UserError(f"--distill {distill}: is the folder of --bundle, too; allowed: another folder")
    from imgcls_search.jobs.bundle.deliver import refuse_taken
    from imgcls_search.jobs.ensemble.making import make
    from imgcls_search.jobs.ensemble.student import check_student, distil
    from imgcls_search.jobs.ensemble.testing import test as on_test

    if bundle is not None:
        refuse_taken(bundle)
    if distill is not None:
        check_student(distill)
    with screens.drafting() as show:
        made = make(
            files,
            picks=picks,
            winner=trial,
            weights=output,
            data=component_of_data(data),
            say=screens.say,
            progress=show,
        )
    taught = tested = None
    if distill is not None:
        with screens.training() as screen:
            taught = distil(made, student, distill, screen)
    delivered = _deliver(made, bundle, files.root, screens, moved=data is not None) if bundle is not None else None
    # Last, so that no failure of another step loses the scores of an opened test split.
    if test:
        screens.say("measuring on the test split")
        tested = on_test(made, Path(taught["weights"]) if taught is not None else None, screens.say)
    return Ensemble(
        weights=made.weights,
        folder=bundle,
        facts={**made.summary, "student": taught, "test": tested, "bundle": delivered},
    )


def _deliver(made: Made, out: Path, studies: Path, screens: Screens, *, moved: bool) -> BundleMetrics:
    from imgcls_search.executors.helper import image_cache
    from imgcls_search.jobs.bundle.deliver import deliver
    from imgcls_search.jobs.bundle.weights import from_weights

    # Use the current location of the study's images, which may have moved since its trials were trained.
    trained = from_weights(made.weights, made.library.winner_config.component("data"))
    with screens.steps() as step:
        return deliver(trained, out, image_cache(studies), screens.say, step, must_be_same=moved)


def _sizes(found: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(format(found[name], how) for name, how in _SIZES)


def _of_test(metric: str, tested: Mapping[str, Any]) -> list[str]:
    images = tested["images"]
    winner = measured(metric, tested["winner"], images)
    lines = []
    for name in ("ensemble", "student"):
        if name not in tested:
            continue
        gap = measured(metric, tested[name] - tested["winner"], images)
        low, high = tested[f"{name}_minus_winner_95"]
        lines.append(
            f"test {metric}: {name} {measured(metric, tested[name], images)}, best trial {winner}; difference {gap} "
            f"(95 % interval {low:+.4f} to {high:+.4f}, {images:,} images)"
        )
    return lines
