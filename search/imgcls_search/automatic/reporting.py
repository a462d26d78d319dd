"""The report of `auto`: write it if there is time, unless the one in the folder shows the present choice."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from imgcls_search import digests
from imgcls_search.automatic import budget
from imgcls_search.automatic.ledger import Ledger, ending_at
from imgcls_search.automatic.watching import watch_steps
from imgcls_search.errors import OutOfTimeError
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.result_facts import AutoFact, Confirmation
from imgcls_search.trial import Trial
from imgcls_search.words import argument

if TYPE_CHECKING:
    from imgcls_search.views.screens import Screens


def report(
    page: Path, files: StudyFiles, trial: Trial, confirmed: Confirmation | None, ledger: Ledger, screens: Screens
) -> bool:
    """Write the report if there is time; return whether the page shows this trial and its confirmation."""
    fact = ledger.fact
    ledger.begin("report")
    at = None if confirmed is None else confirmed["at"]
    is_current = _is_current(page, fact, trial, at)
    if is_current and fact.get("reported", 0.0) >= fact["given"]:
        return True
    started = time.monotonic()
    try:
        from imgcls_search.views.report import write_report

        with screens.steps() as step, ending_at(ledger.end - budget.END_SECONDS / 2):
            write_report(files, page, trial.number, watch_steps(step, ledger))
    except OutOfTimeError:
        screens.say(
            f"report: skipped, the time is over; write it with: imgcls-search report {files.argument} "
            f"-o {argument(page)}"
        )
        return is_current
    fact["reported"] = fact["given"]
    fact["report"] = {"trial": trial.number, "confirmed": at, "sha256": digests.of_file(page)}
    fact["measured"] = {**fact.get("measured", {}), "report": time.monotonic() - started}
    ledger.save()
    return True


def _is_current(page: Path, fact: AutoFact, trial: Trial, at: str | None) -> bool:
    """Tell whether the page is the one that was written for a trial and the confirmation of a time.

    `run` and `confirm` may have changed the choice since, and another study may have written into the same folder.
    """
    if not page.is_file() or "reported" not in fact:
        return False
    if "report" not in fact:
        # Accounts of earlier versions do not tell.
        return True
    return fact["report"] == {"trial": trial.number, "confirmed": at, "sha256": digests.of_file(page)}
