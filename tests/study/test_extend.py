"""Studies whose space grows: what counts as growth, what becomes of their trials, and what a kill leaves."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import imgcls_search as ic
import optuna
import pytest
import sqlalchemy
from imgcls_search.api import trainings
from imgcls_search.catalog import catalog
from imgcls_search.jobs.retrain import Training
from imgcls_search.space import Space, differences, parse
from imgcls_search.space.widening import Widening, compare, in_wider
from imgcls_search.strategy.draws import draw_random, draw_start
from imgcls_search.strategy.propose import make_proposer
from imgcls_search.strategy.pruners import PRUNERS
from imgcls_search.strategy.view import View
from imgcls_search.study import record as records
from imgcls_search.study.address import Address
from imgcls_search.study.extend import distribution_of, extend
from imgcls_search.study.files import StudyFiles, find_study
from imgcls_search.study.record import Record
from imgcls_search.study.requests import make_request
from imgcls_search.study.settings import is_free
from imgcls_search.trial import SIZES, Rejection, Trial

from tests.conftest import linux_only

SMALL = """
study: {name: s, trials: 100, sampler: SAMPLER, pruner: {halving: {min_epochs: 2}}}
data: {digits: {}}
model: {lenet5: {width: {choice: [0.5, 1]}, activation: relu}}
optimizer: {adamw: {lr: {float: [1e-4, 1e-3], log: true}, weight_decay: {float: [0.0, 0.2], step: 0.1}}}
loss: {cross_entropy: {label_smoothing: 0.1}}
training: {epochs: 4, batch_size: {int: [32, 64], step: 16}}
"""
WIDE = """
study: {name: s, trials: 100, sampler: SAMPLER, pruner: {halving: {min_epochs: 2}}}
data: {digits: {}}
start: [{model: resnet}]
model:
  resnet: {depths: [1, 1], width: {choice: [8, 16]}}
  lenet5: {width: {choice: [2, 1, 0.5]}, activation: {choice: [tanh, relu]}}
optimizer:
  adamw: {lr: {float: [1e-5, 1e-1], log: true}, weight_decay: {float: [0.0, 0.5]}}
  sgd: {lr: {float: [1e-3, 1], log: true}}
loss: {cross_entropy: {label_smoothing: {float: [0, 0.2]}}}
training: {epochs: 4, batch_size: {choice: [16, 32, 48, 64]}}
"""


def space_of(text: str, sampler: str = "auto", **changes: str) -> Space:
    overrides = [(path.replace("__", "."), value) for path, value in changes.items()]
    return parse(text.replace("SAMPLER", sampler), catalog(), source="s.yaml", overrides=overrides)


def widening_of(old: Space, new: Space) -> Widening:
    before = records.to_json(old.document)
    found = differences(before, records.to_json(new.document))
    return compare([change for change in found if not is_free(change.path)], before, new)


@pytest.mark.parametrize(
    ("path", "value", "added"),
    [
        ("optimizer.adamw.lr", "{float: [1e-5, 1e-3], log: true}", "optimizer.adamw.lr: float 1e-05..0.001 log"),
        ("optimizer.adamw.lr", "{float: [1e-4, 1e-3]}", "optimizer.adamw.lr: float 0.0001..0.001"),
        ("optimizer.adamw.weight_decay", "{float: [0, 0.2]}", "optimizer.adamw.weight_decay: float 0.0..0.2"),
        (
            "optimizer.adamw.weight_decay",
            "{float: [0, 0.3], step: 0.05}",
            "optimizer.adamw.weight_decay: float 0.0..0.3 step 0.05",
        ),
        ("model.lenet5.width", "{choice: [1, 2, 0.5]}", "model.lenet5.width: one of 1.0, 2.0, 0.5"),
        ("model.lenet5.width", "{choice: [1, 0.5]}", "model.lenet5.width: one of 1.0, 0.5"),
        ("model.lenet5.width", "{float: [0.5, 3]}", "model.lenet5.width: float 0.5..3.0"),
        ("model.lenet5.activation", "{choice: [tanh, relu]}", "model.lenet5.activation: one of tanh, relu"),
        ("training.batch_size", "{int: [16, 64]}", "training.batch_size: int 16..64"),
        ("training.batch_size", "{choice: [64, 48, 32]}", "training.batch_size: one of 64, 48, 32"),
        ("augment.policy", "{none: {}, trivial: {}}", "augment.policy: trivial too"),
        ("study.sampler", "tpe", "study.sampler: auto becomes tpe"),
        ("study.pruner", "{halving: {min_epochs: 1}}", "study.pruner: halving with other arguments"),
        ("start", "[{model.lenet5.width: 1}]", "start: 1 more configuration"),
    ],
)
def test_what_contains_the_space_before_is_growth(path: str, value: str, added: str) -> None:
    old = space_of(SMALL)
    found = widening_of(old, parse(SMALL.replace("SAMPLER", "auto"), catalog(), source="s", overrides=[(path, value)]))
    assert found.refused == ()
    assert found.added == (added,)
    new: dict[str, Any] = {"model.lenet5.activation": "tanh", "augment.policy": "trivial"}
    if "1, 2, 0.5" in value:
        new["model.lenet5.width"] = 2.0
    assert found.novel == (((path, new[path]),) if path in new else ())
    assert widening_of(old, old) == Widening(added=(), refused=())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("optimizer.adamw.lr", "{float: [2e-4, 1e-1], log: true}"),
        ("optimizer.adamw.lr", "1e-3"),
        ("optimizer.adamw.lr", "{float: [1e-4, 1e-3], step: 1e-4}"),
        ("optimizer.adamw.weight_decay", "{float: [0, 0.3], step: 0.15}"),
        ("model.lenet5.width", "{choice: [1, 2]}"),
        ("model.lenet5.width", "{float: [0.6, 3]}"),
        ("model.lenet5.activation", "tanh"),
        ("training.batch_size", "{int: [32, 64], step: 32}"),
        ("training.batch_size", "{int: [31, 64], step: 11}"),
        ("training.epochs", "5"),
        ("study.seed", "7"),
        ("study.objectives", "{loss: minimize}"),
        ("limits.params", "1000"),
        ("data.digits.max_train", "100"),
    ],
)
def test_what_takes_away_or_changes_what_trials_are_is_refused_by_its_path(path: str, value: str) -> None:
    new = parse(SMALL.replace("SAMPLER", "auto"), catalog(), source="s", overrides=[(path, value)])
    found = widening_of(space_of(SMALL), new)
    assert found.added == ()
    assert [change.path for change in found.refused][:1] == [path]


def test_family_that_is_gone_is_refused_though_others_came() -> None:
    found = widening_of(space_of(WIDE), space_of(SMALL))
    assert {"model.resnet", "optimizer.sgd", "start"} <= {change.path for change in found.refused}


def made_study(
    folder: Path, sampler: str = "auto", count: int = 12, *, name: str = "s", address: Address | None = None
) -> tuple[StudyFiles, Record]:
    """Return a study whose trials are the better the higher their learning rate, with open ones and a rejection."""
    space = space_of(SMALL, sampler)
    files = StudyFiles(folder, name, address)
    files.make()
    record = records.create(
        files,
        space.objectives,
        {"space": records.to_json(space.document), "data": {"fingerprint": "f", "classes": ["0"], "images": {}}},
    )
    for number in range(count):
        add_trial(record, space, number)
    return files, record


def add_trial(record: Record, space: Space, number: int) -> None:
    candidate = draw_random(View(space, [], [], seed=1), number, 0)
    rejected = draw_random(View(space, [], [], seed=2), number, 0)
    rejection = Rejection(params=rejected.params, distributions=rejected.distributions, reason="limits.params: over 1")
    trial = Trial(
        number=number,
        candidate=candidate,
        seed=number,
        sizes=dict.fromkeys(SIZES, 1000),
        metric="accuracy",
        until=4,
        rejected_before=(rejection,) if number % 4 == 1 else (),
    )
    record.add(trial)
    value = float(trial.candidate.params["optimizer.adamw.lr"]) * 500  # type: ignore[arg-type]
    for epoch in range(1, 3 if number % 5 == 4 else 5):
        record.add_epoch(trial, {"epoch": epoch, "accuracy": value * epoch / 4, "loss": 1.0, "seconds": 1.0})
    if number % 5 == 4:
        record.set_plan(trial, until=2, paused=True)
    else:
        record.complete(trial, [value])


def wider(files: StudyFiles, record: Record, sampler: str = "auto") -> Record:
    new = space_of(WIDE, sampler)
    old = records.to_json(record.fact("space"))
    found = differences(old, records.to_json(new.document))
    changes = [change for change in found if not is_free(change.path)]
    return extend(files, record, new, compare(changes, old, new), old)


def contents(record: Record) -> list[Any]:
    return [
        (trial.number, trial.state, trial.values, trial.epochs, trial.judged, trial.until, trial.candidate.config)
        for trial in record.trials
    ]


def rows_of(files: StudyFiles, name: str) -> list[Any]:
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{files.database}")
    return [
        (t.number, t.state, t.values, t.params, t.distributions, t.user_attrs, t.system_attrs, t.intermediate_values)
        for t in study.trials
    ]


def test_grown_study_keeps_its_trials_and_the_one_before_it_stays_openable(tmp_path: Path) -> None:
    files, record = made_study(tmp_path)
    record.study.enqueue_trial({"model.lenet5.width": 1}, user_attrs={"by": "me"})
    before, ids, rows = contents(record), dict(record.ids), rows_of(files, "s")
    grown = wider(files, record)
    assert contents(grown) == before
    assert grown.ids == ids
    new = space_of(WIDE)
    for trial in grown.trials:
        # The same configuration, as the wider space has it.
        assert new.config_of(trial.candidate.params) == trial.candidate.config
        for path, found in trial.candidate.distributions.items():
            parameter = next(each for each in new.parameters() if each.path == path)
            assert found == distribution_of(parameter)
        for rejection in trial.rejected_before:
            assert new.config_of(rejection.params)
            assert set(rejection.distributions) == set(rejection.params)
        assert trial.strategy["sampler"] == {"auto": {}}
    assert [foreign.state for foreign in grown.foreign_trials.values()] == ["waiting"]
    # Optuna itself reads all of it, and takes new values of the wider space.
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{files.database}")
    asked = study.ask()
    assert new.sample(asked)
    study.tell(asked, 0.5)
    kept = find_study(tmp_path, "s@1", None)
    assert contents(records.load(kept)) == before
    assert rows_of(files, "s@1") == rows
    (done,) = grown.facts["extended"]
    assert (done["kept"], done["trials"]) == ("s@1", 12)
    # Only the start configuration is new, which the first trials were not: it is a request.
    (request,) = grown.facts["requests"]
    assert (request["by"], request["params"]) == ("start", {"model": "resnet"})


def test_what_was_asked_meanwhile_is_kept_and_asks_for_the_same_setting(tmp_path: Path) -> None:
    files, record = made_study(tmp_path)
    params = {"model.lenet5.width": 1.0, "optimizer.adamw.lr": 5e-4, "optimizer.adamw.weight_decay": 0.1}
    config = space_of(SMALL).config_of({**params, "training.batch_size": 48})
    # By another process, after this one has read the study.
    asked = make_request({**params, "training.batch_size": 48}, "try")
    records.load(files).append_fact("requests", asked)
    grown = wider(files, record)
    first, second = grown.facts["requests"]
    assert (first["id"], second["by"]) == (asked["id"], "start")
    # What the smaller space gave is no longer to be drawn.
    assert space_of(WIDE).config_of(first["params"]) == config


def test_earlier_state_is_what_the_python_interface_opens(tmp_path: Path) -> None:
    files, record = made_study(tmp_path)
    candidate = draw_random(View(space_of(WIDE), [], [], seed=1), 12, 0)
    later = Trial(number=12, candidate=candidate, seed=1, sizes=dict.fromkeys(SIZES, 1000), metric="accuracy")
    wider(files, record).add(later)
    study = ic.open_study("s@1", studies=tmp_path)
    assert study.name == "s@1"
    assert [each.status["trials"]["total"] for each in (study, ic.open_study("s", studies=tmp_path))] == [12, 13]
    # A trial of both is one of the study that may note what becomes of it.
    assert study.best.study == "s"
    assert training_of(study.best, tmp_path).origin == {"study": "s", "trial": study.best.number}


def training_of(trial: ic.Trial, studies: Path) -> Training:
    return trainings.training_of(
        trial,
        [],
        None,
        None,
        skip_unreadable=False,
        seeds=1,
        on="train",
        out=None,
        studies=studies,
        storage=None,
        say=print,
    )


def test_distributions_are_those_that_a_trial_suggests() -> None:
    space = space_of(WIDE)
    for params in ({"model": "lenet5"}, {"model": "resnet", "optimizer": "sgd"}, {"optimizer": "adamw"}):
        candidate = draw_start(View(space, [], [], seed=1), params, 0)
        for path, found in candidate.distributions.items():
            assert found == distribution_of(next(each for each in space.parameters() if each.path == path))


def test_study_grows_again_and_each_earlier_state_is_kept(tmp_path: Path) -> None:
    files, record = made_study(tmp_path)
    wider(files, record)
    record = records.load(files)
    new = space_of(WIDE, training__batch_size="{int: [8, 64]}")
    old = records.to_json(record.fact("space"))
    changes = [each for each in differences(old, records.to_json(new.document)) if not is_free(each.path)]
    grown = extend(files, record, new, compare(changes, old, new), old)
    assert [done["kept"] for done in grown.facts["extended"]] == ["s@1", "s@2"]
    for trial in grown.trials:
        assert new.config_of(trial.candidate.params) == trial.candidate.config
    assert records.load(find_study(tmp_path, "s@2", None)).trials[0].candidate.params.keys() > {"model", "optimizer"}
    assert "model" not in records.load(find_study(tmp_path, "s@1", None)).trials[0].candidate.params


@linux_only
def test_kill_at_any_moment_leaves_the_old_study_or_the_new_one_whole(tmp_path: Path) -> None:
    files, record = made_study(tmp_path)
    old, before = records.to_json(record.fact("space")), contents(record)
    rows = rows_of(files, "s")
    assert record.rows.engine is not None
    record.rows.engine.dispose()
    states = []
    for moment in range(200):
        pid = os.fork()
        if pid == 0:
            _extend_and_die(files, moment)
        _, status = os.waitpid(pid, 0)
        with closing(sqlite3.connect(files.database)) as connection:
            assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
            names = sorted(name for (name,) in connection.execute("SELECT study_name FROM studies"))
        now = records.load(files)
        assert contents(now) == before
        is_new = now.fact("space") != old
        assert now.rows.engine is not None
        now.rows.engine.dispose()
        assert names == (["s", "s@1"] if is_new else ["s"])
        if not is_new:
            assert rows_of(files, "s") == rows
        states.append((is_new, os.waitstatus_to_exitcode(status)))
        if is_new:
            break
    assert len(states) > 20
    assert {code for _, code in states[:-1]} == {-signal.SIGKILL}
    assert rows_of(files, "s@1") == rows


def _extend_and_die(files: StudyFiles, moment: int) -> None:
    """Extend a study in a process that dies at the so-many-th statement."""
    try:
        left = [moment]

        def count(*_: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        record = records.load(files)
        sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", count)
        sqlalchemy.event.listen(sqlalchemy.Engine, "commit", count)
        wider(files, record)
    finally:
        os._exit(0)


@pytest.mark.parametrize("sampler", ["random", "tpe", "curves", "qmc", "nsga2"])
def test_samplers_learn_from_earlier_trials_in_the_wider_space(sampler: str, tmp_path: Path) -> None:
    files, record = made_study(tmp_path, sampler, count=40)
    grown = wider(files, record, sampler)
    space = space_of(WIDE, sampler)
    drawn = draws(space, grown, 24)
    for section, names in (("model", {"lenet5", "resnet"}), ("optimizer", {"adamw", "sgd"})):
        counts = Counter(config.component(section).name for config in drawn)
        assert counts.keys() == names
        assert min(counts.values()) >= 3
    assert 2.0 in [config.component("model").args["width"] for config in drawn if "lenet5" in config.tree["model"]]
    rates = [
        config.component("optimizer").args["lr"] for config in drawn if config.component("optimizer").name == "adamw"
    ]
    # What was best stood at the upper end of the range before it grew; few random draws are above its middle.
    high = sum(rate > 3e-4 for rate in rates) / len(rates)
    if sampler in ("tpe", "curves"):
        assert high > 0.68
    assert max(rates) > 1e-3


def draws(space: Space, record: Record, count: int) -> list[Any]:
    """Return what a search draws next, as one trial after the other begins."""
    pruner = PRUNERS["none"](epochs=4, sign=1)

    def sizes(_: Any) -> Any:
        yield
        return dict.fromkeys(SIZES, 1000.0)

    novel = [(path, value) for grown in record.facts["extended"] for path, value in grown["novel"]]
    proposer, _ = make_proposer(space, pruner, 1, seed=0, measure_sizes=sizes, novel=novel)
    known, found = list(record.trials), []
    for _ in range(count):
        proposal = next(each for each in proposer.proposals(known) if each is not None)
        number = known[-1].number + 1
        trial = Trial(number=number, candidate=proposal.candidate, seed=0, sizes=proposal.sizes, metric="accuracy")
        known.append(trial)
        found.append(proposal.candidate.config)
    return found


def test_parameters_of_a_branch_that_was_the_only_one_are_found() -> None:
    old = records.to_json(space_of(SMALL).document)
    found = in_wider({"model.lenet5.width": 1.0, "optimizer.adamw.lr": 1e-3}, old, space_of(WIDE))
    assert found["model"] == "lenet5"
    assert found["optimizer"] == "adamw"
    assert found["model.lenet5.activation"] == "relu"
    assert found["loss.cross_entropy.label_smoothing"] == 0.1
    assert not any(path.startswith(("model.resnet", "optimizer.sgd")) for path in found)
