"""Run the steps of `auto`: draft, search with an early score and bundle, confirm, bundle and report in parallel.

Each step is also a command. A call resumes at the first step that earlier calls did not finish.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from imgcls_search import atomic, durations
from imgcls_search.automatic import budget, output, testing
from imgcls_search.automatic.bundling import BundleProcess, trial_in
from imgcls_search.automatic.ledger import Ledger, ending_at, known_account, read_file
from imgcls_search.automatic.reporting import report
from imgcls_search.automatic.request import Delivered, Interrupted, Request
from imgcls_search.automatic.watching import AutoWatcher, TrainingWatch, watch_steps
from imgcls_search.errors import DataError, DeployError, OutOfTimeError, UserError, writing
from imgcls_search.executors.helper import image_cache
from imgcls_search.jobs.export import export_trial
from imgcls_search.orchestrator import study_data
from imgcls_search.progress import ShowStep
from imgcls_search.space import Space
from imgcls_search.study import best
from imgcls_search.study.address import Address, settle
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record, load
from imgcls_search.study.result_facts import AutoFact, Confirmation
from imgcls_search.trial import Trial

# Import slow modules only in the step that needs them, to save time.
if TYPE_CHECKING:
    from imgcls_search.jobs.init.draft import Decision, Draft, Flips
    from imgcls_search.orchestrator.begin import Outcome
    from imgcls_search.views.screens import Screens

USUAL_SECONDS = 3600.0
"""Total time if no call gave one."""

WORTH_SECONDS = 10.0
"""Add trials when all are done and more than this is left of the search's time."""


class Auto:
    """One call of `auto`."""

    def __init__(self, request: Request, screens: Screens) -> None:
        """Load the progress of earlier calls, and check the request.

        Raises:
            UserError: the folders or the images cannot be used.
        """
        self.request, self.screens = request, screens
        self.output = output.find(request.component, request.out, request.studies)
        self.decisions: tuple[Decision, ...] = ()
        self.files: StudyFiles | None = None
        self.record: Record | None = None
        fact = self._known()
        given = request.seconds or fact.get("given") or USUAL_SECONDS
        self.is_resumed = bool(fact.get("spent"))
        self.known_flips = fact.get("flips")
        output.clear_drafts(self.output)
        if not fact:
            output.refuse_others(self.output)
        self.ledger = Ledger({**fact, "given": given}, self.output.account, request.started)
        self.ledger.record = self.record
        if self.output.space_file.is_file() and request.flips not in (None, self.known_flips):
            how = f" with {self.known_flips}" if self.known_flips is not None else ""
            raise UserError(
                f"--flips {request.flips}: {self.output.space_file} was drafted{how}; change "
                "augment.flip there before the first trial, or choose another folder with -o"
            )

    def run(self) -> Delivered:
        """Run the steps that are not done yet.

        Raises:
            UserError: a file, folder or setting cannot be used.
            NoResultError: the time ended before there was a trial to use.
            Interrupted, KeyboardInterrupt: the user stopped it.
        """
        output.make(self.output)
        self._say_time()
        self.ledger.fact["out"] = str(self.output.out.absolute())
        self.ledger.save()
        try:
            self._draft()
            self._search()
            record, trial, confirmed = self._choose()
            has_report = self._deliver(record, trial, confirmed)
        finally:
            if self.output.out.is_dir():
                self.ledger.save()
        assert self.files is not None
        return Delivered(
            output=self.output,
            files=self.files,
            record=record,
            trial=trial,
            confirmed=confirmed,
            account=self.ledger.fact,
            decisions=self.decisions,
            has_report=has_report,
        )

    def _known(self) -> AutoFact:
        """Return the account of earlier calls."""
        if self.output.space_file.is_file():
            space = self._space()
            _, files = output.study_of(space, self.request.studies, self._address(space))
            if files.store.exists():
                if (holder := files.holder()) is not None:
                    raise UserError(f"{files.store}: another run is working on this study ({holder.process})")
                self.files, self.record = files, load(files)
                if "auto" in self.record.facts:
                    return known_account(self.record.facts["auto"], str(files.store))
        return read_file(self.output.account) or {}

    def _space(self) -> Space:
        # This call keeps the time, so the search needs no timeout.
        changes = [*self.request.changes, ("study.timeout", "null")]
        return output.read(self.output, self.request.component, changes)

    def _address(self, space: Space) -> Address | None:
        return settle(self.request.storage, space.study["storage"])

    def _say_time(self) -> None:
        given, left = durations.show(self.ledger.fact["given"], exact=True), max(0.0, self.ledger.left)
        if self.is_resumed:
            self.screens.say(
                f"{durations.show(left) if left else 'nothing'} is left of {given}; earlier calls took "
                f"{durations.show(self.ledger.spent)}"
            )
        else:
            self.screens.say(f"time: {given} in all; results go into {self.output.out}")

    # Draft.

    def _draft(self) -> None:
        if self.output.space_file.is_file():
            return
        if self.ledger.left <= 0:
            raise budget.too_short(self.ledger.fact, "nothing is left")
        flips = self.request.flips or self.request.ask_flips()
        if flips is not None:
            self.ledger.fact["flips"] = flips
        # Before the space: were this call killed in between, the same call would be refused as one with other flips.
        self.ledger.save()
        try:
            with self.screens.drafting() as show, ending_at(self.ledger.end):
                found = self._drafted(flips or "none", show)
        except OutOfTimeError:
            raise budget.too_short(self.ledger.fact, "the images were still being looked at") from None
        with writing(self.output.space_file):
            atomic.write_text(self.output.space_file, found.space)
        budget.note_speeds(self.ledger.fact, found.facts["speeds"])
        self.decisions = found.decisions
        for one in found.decisions:
            self.screens.say(str(one))
        for note in found.notes:
            self.screens.say(f"note: {note}")

    def _drafted(self, flips: Flips, show: ShowStep) -> Draft:
        from imgcls_search.jobs.init.draft import draft

        def seen(what: str, done: int, total: int) -> None:
            show(what, done, total)
            self.ledger.save_sometimes()

        return draft(
            self.request.component,
            seconds=max(1.0, self.ledger.left),
            root=self.request.studies,
            flips=flips,
            changes=self.request.changes,
            file=str(self.output.space_file),
            progress=seen,
        )

    # Search.

    def _search(self) -> None:
        fact = self.ledger.fact
        space = self._space()
        address = self._address(space)
        space, self.files = output.study_of(space, self.request.studies, address)
        if fact.get("searched", 0.0) >= fact["given"]:
            self._refuse_other(space)
            return
        if self.ledger.left > (budget.kept_seconds(self.record, fact) if self.record is not None else 0):
            self.screens.say(f"study {space.name} in {self.files.store}")
            self.ledger.begin("search" if "baseline" in fact else "baseline")
            self._run(space, address)
        else:
            self._refuse_other(space)
        if self.record is None or not best.ranked(self.record):
            self.ledger.save()
            raise budget.too_short(fact, budget.how_far(self.record))
        fact["searched"] = fact["given"]
        self.ledger.save()

    def _refuse_other(self, space: Space) -> None:
        """Refuse settings and images that are not the study's as a search does, where none is left to do so.

        Raises:
            StudyError: they differ from those that the study was started with.
            DataError: the images cannot be read.
        """
        if self.record is None or not self.record.trials:
            return
        from imgcls_search.orchestrator.reopening import reopen

        assert self.files is not None
        record = reopen(self.files, space, self.screens.say, extends=False)
        assert record is not None, "only a study without trials starts over"
        study_data.refuse_other_unopened(record, space.first().component("data"), image_cache(self.request.studies))
        study_data.note_place(record, space.first())

    def _run(self, space: Space, address: Address | None) -> None:
        while True:
            with self.screens.search() as screen, AutoWatcher(screen, self.ledger, self.output.bundle) as watcher:
                outcome = self._run_once(space, address, watcher)
                if outcome is not None and outcome.ending in ("interrupted", "terminated"):
                    raise Interrupted(outcome.ending)
                self._load()
                if outcome is None or outcome.ending != "finished" or not self._has_time_for_more():
                    watcher.finish_bundle(self.ledger.left - budget.closing_seconds(self.ledger.fact) / 2)
                    return
                trials = 2 * space.study["trials"]
                self.screens.say(
                    f"all {space.study['trials']} trials are done, and time is left: --set study.trials={trials}"
                )
            space = replace(space, study={**space.study, "trials": trials})

    def _run_once(self, space: Space, address: Address | None, watcher: AutoWatcher) -> Outcome | None:
        """Search until the deadline; return None if the time ended before the search had saved."""
        from imgcls_search.orchestrator.begin import run

        try:
            with ending_at(self.ledger.end):
                return run(
                    space,
                    self.request.studies,
                    watcher,
                    self.files.address if self.files is not None else address,
                    cluster=self.request.cluster,
                    deadline=watcher.deadline,
                )
        except OutOfTimeError:
            self.screens.say("the time ended before the search had saved; it resumes from the last checkpoints")
            return None

    def _load(self) -> None:
        """Read the current state of the study."""
        assert self.files is not None
        if self.files.store.exists():
            self.record = study_data.load_with_images(self.files)
            self.ledger.keep_in(self.record)

    def _has_time_for_more(self) -> bool:
        assert self.record is not None
        return self.ledger.left - budget.kept_seconds(self.record, self.ledger.fact) > WORTH_SECONDS

    # Confirm.

    def _choose(self) -> tuple[Record, Trial, Confirmation | None]:
        """Return the trial to deliver and the result of its confirmation, if there was time for one."""
        self._load()
        assert self.record is not None
        self.ledger.begin("confirm")
        best.the_best(self.record)
        ranking = best.ranked(self.record)
        confirmed = self._confirm(self.record, [trial.number for trial in ranking])
        self._load()
        trial = ranking[0] if confirmed is None else self.record.by_number[confirmed["chosen"]]
        return self.record, trial, confirmed

    def _confirm(self, record: Record, ranking: list[int]) -> Confirmation | None:
        assert self.files is not None
        known = record.facts.get("confirmed")
        if known is not None and budget.is_confirmed(known, ranking):
            return known
        fact = self.ledger.fact
        closing = budget.closing_seconds(fact, record)
        plan = fact.get("confirming")
        if plan is None or not budget.is_valid(plan, ranking):
            plan = budget.affordable(record, fact, self.ledger.left - closing)
        if plan is None or self.ledger.left <= closing:
            self.screens.say(
                f"confirm: skipped, {durations.show(max(0.0, self.ledger.left))} is too short to retrain the best "
                f"trials; to confirm later: imgcls-search confirm {self.files.argument}"
            )
            return None
        fact["confirming"] = plan
        self.ledger.save()
        if known is not None:
            self.screens.say(
                "the search has found better trials since the last confirmation: the test split is opened again"
            )
        top, seeds = len(plan["trials"]), plan["seeds"]
        self.screens.say(
            f"confirm: retrains the best {top} with {seeds} new seeds each, and the winner with {seeds} more"
        )
        from imgcls_search.jobs.confirm import confirm

        try:
            with self.screens.training() as screen, ending_at(self.ledger.end - closing):
                return confirm(
                    self.files,
                    top=len(plan["trials"]),
                    seeds=plan["seeds"],
                    again=known is not None,
                    watcher=TrainingWatch(screen, self.ledger),
                )
        except OutOfTimeError:
            self.screens.say(
                "confirm: not finished in its time; its networks are kept, and a longer --time finishes it"
            )
        except DataError as error:
            self.screens.say(f"confirm: skipped: {error}")
        return None

    def _test(self, record: Record, trial: Trial) -> None:
        """Score an unconfirmed network on the test split, once."""
        fact = self.ledger.fact
        if "test" in fact and fact["test"]["trial"] == trial.number:
            return
        if not record.fact("data")["images"].get("test"):
            self.screens.say("there are no test images")
            return
        assert self.files is not None
        self.screens.say(f"measuring trial {trial.number} on the test split")
        try:
            with ending_at(self.ledger.end):
                fact["test"] = testing.open_test(record, self.files, trial, self.screens.say)
        except OutOfTimeError:
            self.screens.say("no test score: the time is over; the same command with a longer --time measures it")
        except DataError as error:
            self.screens.say(f"no test score: {error}")
        self.ledger.save()

    # Deliver.

    def _deliver(self, record: Record, trial: Trial, confirmed: Confirmation | None) -> bool:
        """Write the model while testing it and writing the report; return whether there is a report."""
        from imgcls_search.training.device import one_thread

        assert self.files is not None
        bundling = self._begin_bundle(trial)
        try:
            with one_thread() if bundling is not None else nullcontext():
                if confirmed is None:
                    self._test(record, trial)
                has_report = report(self.output.report, self.files, trial, confirmed, self.ledger, self.screens)
            if bundling is not None:
                self._finish_bundle(bundling)
        finally:
            if bundling is not None:
                bundling.close()
        return has_report

    def _begin_bundle(self, trial: Trial) -> BundleProcess | None:
        assert self.files is not None
        self.ledger.begin("bundle")
        exported = export_trial(self.files, trial.number)
        with writing(self.output.config):
            atomic.write_text(self.output.config, exported)
        there = trial_in(self.output.bundle, self.files.name)
        if there == trial.number and self.ledger.fact.get("bundled") == there:
            return None
        return BundleProcess(self.files, trial.number, self.output.bundle)

    def _finish_bundle(self, bundling: BundleProcess) -> None:
        """Wait until the model is written.

        Raises:
            DeployError: it cannot be written.
        """
        assert self.files is not None
        fact = self.ledger.fact
        self.ledger.begin("bundle")
        # Exceed the time to write a first model, but not to replace it with a better one.
        former = trial_in(self.output.bundle, self.files.name)
        end = self.ledger.end if former is not None else math.inf
        try:
            with self.screens.steps() as step, ending_at(end):
                told = bundling.wait(watch_steps(step, self.ledger))
        except OutOfTimeError:
            self.screens.say(
                f"bundle: the time is over, {self.output.bundle} is of trial {former}; export the winner: "
                f"imgcls-search export {self.files.argument} --trial {bundling.trial} --bundle DIR"
            )
            return
        if isinstance(told, str):
            raise DeployError(told)
        fact["bundled"] = bundling.trial
        fact["measured"] = {**fact.get("measured", {}), "bundle": told}
        self.ledger.save()
