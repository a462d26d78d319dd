"""The note of a study, as optuna-dashboard reads it."""

from __future__ import annotations

from pathlib import Path

import optuna_dashboard
from imgcls_search.catalog import catalog
from imgcls_search.space import parse
from imgcls_search.study import note
from imgcls_search.study.note import write_note

from scripts.bench import simulation

SPACE = parse(simulation.SPACE.format(sampler="random", epochs=simulation.EPOCHS), catalog(), source="test")


def test_note_says_what_was_searched_and_what_is_best_and_is_kept_once_changed(tmp_path: Path) -> None:
    record = simulation.new_record(tmp_path, SPACE, "s")
    images = {"train": 1222, "val": 216, "test": 359}
    record.set_fact("data", {"images": images, "classes": list("0123456789"), "fingerprint": "f00"})
    write_note(record)
    assert "no complete trial" in optuna_dashboard.get_note(record.study)
    for trial in simulation.make_trials(SPACE, 3):
        trial.state = "running"
        record.add(trial)
        record.complete(trial, trial.values or ())
    write_note(record)
    said = optuna_dashboard.get_note(record.study)
    values = [trial.values or () for trial in record.trials]
    assert f"- trial {values.index(max(values))}: accuracy" in said
    assert "- `optimizer.adamw.lr`: `0.0001 to 0.01, log`" in said
    # In parts, and shorter than before.
    old, note.PART = note.PART, 40
    try:
        record.set_fact("confirmed", {"chosen": 1, "metric": "accuracy", "confirmed": {"mean": 0.5}})
        write_note(record)
        assert "Confirmed: trial 1, accuracy 0.500." in optuna_dashboard.get_note(record.study)
    finally:
        note.PART = old
    record.facts.pop("confirmed")
    write_note(record)
    assert optuna_dashboard.get_note(record.study) == said
    optuna_dashboard.save_note(record.study, "mine")
    write_note(record)
    assert optuna_dashboard.get_note(record.study) == "mine"
    record.rows.engine.dispose()
