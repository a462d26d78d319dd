"""Tables of trials: a cell for each column, and rows with every key in each of their forms."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from imgcls_search.catalog import catalog
from imgcls_search.space import parse
from imgcls_search.study.record import Record
from imgcls_search.views import browse

from scripts.bench import simulation

SPACE = "model: {lenet5: {width: {choice: [0.5, 1]}}}\ndata: {digits: {}}\ntraining: {epochs: 1}\n"


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """Return a study with a complete and a failed trial."""
    space = parse(SPACE, catalog(), source="s")
    made = simulation.new_record(tmp_path, space, "s")
    for trial in simulation.make_trials(space, 2):
        values, trial.values, trial.state, trial.epochs = trial.values, None, "running", []
        made.add(trial)
        made.add_epoch(trial, simulation.curve(0.5)[0])
        if trial.number:
            made.fail(trial, "out of memory")
        else:
            made.complete(trial, values or ())
    return made


def test_a_table_has_a_cell_for_each_column(record: Record) -> None:
    rows = browse.trial_rows(record, top=None, family=None)
    cells = [browse.cells_of(row, images=100) for row in rows]
    assert [len(each) for each in cells] == [len(browse.COLUMNS)] * 2
    shown = [dict(zip(browse.COLUMNS, each, strict=True)) for each in cells]
    assert [each["trial"] for each in shown] == ["0", "1"]
    assert [each["state"] for each in shown] == ["complete", "fail: out of memory"]
    assert shown[0]["parameters"] == f"{record.trials[0].sizes['params']:,.0f}"


def test_rows_have_the_stated_keys_and_csv_a_column_for_each(record: Record) -> None:
    rows = browse.trial_rows(record, top=None, family=None)
    stated = browse.TrialRow.__annotations__
    assert all(row.keys() == stated.keys() for row in rows)
    (header, *lines) = csv.reader(io.StringIO(browse.to_csv(rows)))
    plain = {key for key, value in rows[0].items() if not isinstance(value, dict)}
    assert plain | set(rows[0]["params"]) | set(rows[0]["sizes"]) <= set(header)
    assert len(lines) == 2
