"""The account of the time: over calls and kills, in a file and then in the study."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from imgcls_search.automatic.ledger import Ledger, ending_at, known_account, process_began, read_file
from imgcls_search.errors import OutOfTimeError, StudyError, UserError
from imgcls_search.study import record as records
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.result_facts import AutoFact


def test_account_goes_on_where_an_earlier_call_left_it(tmp_path: Path) -> None:
    file = tmp_path / "time.json"
    first = Ledger({"given": 100.0}, file, time.monotonic() - 30)
    first.save()
    # Killed here: what was saved is what is known.
    known = read_file(file)
    assert known is not None
    second = Ledger(known, file, time.monotonic() - 5)
    assert 35 <= second.spent < 40
    assert 60 < second.left <= 65
    second.begin("search")
    assert second.fact["spent"]["init"] >= 35
    assert second.fact["spent"].get("search", 0.0) < 5


def test_account_moves_into_the_study_and_stays_readable(tmp_path: Path) -> None:
    file = tmp_path / "time.json"
    files = StudyFiles(tmp_path, "s")
    files.make()
    record = records.create(files, (("accuracy", "maximize"),), {})
    account = Ledger({"given": 60.0}, file, time.monotonic() - 10)
    account.save()
    assert file.exists()
    account.keep_in(record)
    account.begin("search")
    assert not file.exists()
    found = records.load(files).facts["auto"]
    assert found["given"] == 60.0
    assert found["spent"]["init"] >= 10


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"given": -1, "spent": {}}', '{"given": 5, "spent": {"init": "x"}}'),
        *('{"given": 5, "spent": {}, "measured": 3}', '{"given": 5, "spent": {}, "workers": "x"}'),
    ],
)
def test_damaged_account_is_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "time.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"time\.json: damaged"):
        read_file(file)


def test_damaged_fact_is_named_when_the_study_is_loaded(tmp_path: Path) -> None:
    files = StudyFiles(tmp_path, "s")
    files.make()
    record = records.create(files, (("accuracy", "maximize"),), {})
    record.study.set_user_attr("auto", {"given": "an hour"})
    with pytest.raises(StudyError, match="given"):
        records.load(files)


def test_account_of_a_study_with_a_time_that_no_clock_has_is_named() -> None:
    assert known_account({"given": 60.0, "spent": {}}, "s.db") == {"given": 60.0, "spent": {}}
    wrong: tuple[AutoFact, ...] = (
        {},
        {"given": 60.0},
        {"given": 1e12, "spent": {}},
        {"given": 9.0, "spent": {"init": -1}},
    )
    for account in wrong:
        with pytest.raises(StudyError, match=r"s\.db: is damaged"):
            known_account(account, "s.db")


def test_block_ends_at_its_moment_and_leaves_no_alarm_behind() -> None:
    began = time.monotonic()

    def work() -> None:
        with ending_at(began + 0.2):
            while time.monotonic() - began < 60:
                time.sleep(0.01)

    with pytest.raises(OutOfTimeError):
        work()
    assert time.monotonic() - began < 30
    with ending_at(time.monotonic() + 0.05):
        pass
    # An alarm that was left behind would end the process.
    time.sleep(0.1)


def test_process_began_before_now() -> None:
    assert 0 < time.monotonic() - process_began() < 10 * 3600


def test_an_alarm_that_another_error_wraps_ends_the_block_all_the_same() -> None:
    began = time.monotonic()

    def work() -> None:
        with ending_at(began + 0.05):
            try:
                while time.monotonic() - began < 60:
                    time.sleep(0.01)
            except OutOfTimeError as error:
                # As SQLAlchemy does where the alarm rings while it makes a statement.
                raise RuntimeError("a statement failed") from error

    with pytest.raises(OutOfTimeError):
        work()
    with pytest.raises(RuntimeError, match="another"), ending_at(time.monotonic() + 60):
        raise RuntimeError("another")
