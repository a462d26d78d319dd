"""Searches on recorded curves: the same loop as real ones, on a clock of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from imgcls_search.catalog import catalog
from imgcls_search.config import TrialConfig
from imgcls_search.executors.replay import ReplayExecutor
from imgcls_search.jobs.replay import Recorded, table_catalog
from imgcls_search.jobs.replay import replay as replayed
from imgcls_search.protocol import EpochEnded, Job, MilestoneReached, Started, Stopped
from imgcls_search.space import Space, parse, read_space
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import load
from imgcls_search.trial import Candidate, Trial

from tests.conftest import Answer
from tests.strategy.test_strategy import trial


class Saturating:
    """An accuracy that rises at the rate that the configuration gives; epochs of small rates take longer."""

    def at(self, config: TrialConfig, epoch: int) -> Mapping[str, float]:
        rate = config.section("config")["rate"]
        return {"accuracy": rate * (1 - 0.5**epoch), "seconds": 2.0 - rate}


def space(study: str = "trials: 30", start: str = "[]") -> Space:
    text = f"study: {{name: x, {study}}}\nconfig: {{rate: {{float: [0.1, 1.0]}}}}\ntraining: {{epochs: 18}}\n"
    text += f"start: {start}\n"
    return parse(text, table_catalog(), source="x.yaml")


def job(trial: int, until: int, start: int = 0) -> Job:
    return Job(
        trial=trial,
        config=TrialConfig.from_dict({"config": {"rate": 0.5 * (trial + 1)}}),
        data={},
        seed=0,
        portion="train",
        until_epoch=until,
        from_epoch=start,
        checkpoint="",
        log="",
    )


def test_clock_goes_on_as_workers_side_by_side_would() -> None:
    executor = ReplayExecutor(Saturating(), workers=2)
    executor.start(job(0, 2))
    executor.start(job(1, 2))
    assert executor.free_slots() == 0
    seen = []
    while (event := executor.next_event(0)) is not None:
        seen.append((type(event).__name__, event.trial, executor.clock()))
    ended = [entry for entry in seen if entry[0] == EpochEnded.__name__]
    # Trial 0 takes 1.5 s an epoch, trial 1 takes 1 s.
    assert ended == [("EpochEnded", 1, 1.0), ("EpochEnded", 0, 1.5), ("EpochEnded", 1, 2.0), ("EpochEnded", 0, 3.0)]
    assert [entry[0] for entry in seen].count(MilestoneReached.__name__) == 2
    assert executor.free_slots() == 2


def test_job_that_goes_on_tells_its_history_and_a_stopped_one_loses_its_epoch() -> None:
    executor = ReplayExecutor(Saturating())
    executor.start(job(0, 9, start=3))
    started = executor.next_event(0)
    assert isinstance(started, Started)
    assert [epoch["epoch"] for epoch in started.history] == [1, 2, 3]
    executor.stop(0)
    assert isinstance(executor.next_event(0), Stopped)
    assert executor.next_event(0) is None


def test_search_on_curves_finds_what_is_best_and_pauses_on_its_way() -> None:
    outcome, steps = replayed(space("trials: 30, sampler: random, pruner: {asha: {min_epochs: 2}}"), Saturating())
    trials = outcome.record.trials
    assert outcome.ending == "finished"
    assert {trial.epoch for trial in trials} == {2, 6, 18}
    assert {trial.state for trial in trials} == {"complete", "pruned"}
    top = max(trials, key=lambda trial: trial.candidate.params["config.rate"])
    assert top.state == "complete"
    assert steps.bests[-1][1] == pytest.approx(top.values[0])
    assert steps.seconds == pytest.approx(sum(epoch["seconds"] for trial in trials for epoch in trial.epochs))
    assert steps.said == []


def test_who_watches_a_search_is_told_of_those_that_were_not_promoted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def changed(self: Any, search: Any) -> None:
        seen.append([trial.state for trial in search.record.trials])

    monkeypatch.setattr("imgcls_search.jobs.replay.Steps.changed", changed)
    outcome, _ = replayed(space("trials: 12, sampler: random, pruner: {asha: {min_epochs: 2}}"), Saturating())
    assert "paused" in seen[-2]
    assert seen[-1] == [trial.state for trial in outcome.record.trials]


@pytest.mark.parametrize("pruner", ["asha", "halving", "brackets", "median"])
def test_start_settings_train_to_their_end(pruner: str) -> None:
    worst = "[{config.rate: 0.1}, {config.rate: 0.11}]"
    outcome, _ = replayed(space(f"trials: 12, sampler: random, pruner: {pruner}", worst), Saturating())
    assert [trial.state for trial in outcome.record.trials[:2]] == ["complete"] * 2
    assert {trial.state for trial in outcome.record.trials[2:]} == {"complete", "pruned"}


def test_budget_of_epochs_and_target_end_a_search_where_it_can_go_on() -> None:
    outcome, _ = replayed(space("trials: 30, sampler: random, pruner: asha, max_epochs: 31"), Saturating())
    assert outcome.ending == "epochs"
    assert sum(trial.epoch for trial in outcome.record.trials) == 31
    assert any(trial.is_open for trial in outcome.record.trials)
    outcome, steps = replayed(space("trials: 30, sampler: random, pruner: none, target: 0.8"), Saturating())
    assert outcome.ending == "target"
    assert [value >= 0.8 for _, value in steps.bests] == [False] * (len(steps.bests) - 1) + [True]


@pytest.mark.parametrize("budget", ["max_epochs: 50", "timeout: 70"])
def test_end_of_a_budget_goes_to_the_best_that_rests(budget: str) -> None:
    # One trial in 18 would be promoted: 50 epochs are 17 trials of two, and 16 to train the best of them to its end.
    settings = f"trials: 100, sampler: random, pruner: {{asha: {{min_epochs: 2, eta: 18}}}}, {budget}"
    outcome, steps = replayed(space(settings), Saturating())
    trials = outcome.record.trials
    (ended,) = [trial for trial in trials if trial.state == "complete"]
    before = [trial for trial in trials if trial.number <= 15 or trial is ended]
    assert ended is max(before, key=lambda trial: trial.value_at(2))
    assert outcome.ending == budget.split(":")[0].removeprefix("max_")
    assert {trial.epoch for trial in trials if trial is not ended} <= {0, 1, 2}
    if outcome.ending == "epochs":
        assert sum(trial.epoch for trial in trials) == 50
    assert steps.bests == [(steps.bests[0][0], ended.values[0])]


def test_budget_that_affords_no_whole_training_is_spent_all_the_same() -> None:
    outcome, _ = replayed(space("trials: 100, sampler: random, pruner: asha, max_epochs: 10"), Saturating())
    assert sum(trial.epoch for trial in outcome.record.trials) == 10
    assert outcome.ending == "epochs"


@pytest.mark.parametrize("budget", range(36, 64, 3))
def test_budget_of_two_whole_trainings_ends_with_one_also_where_workers_compete_for_it(budget: int) -> None:
    settings = f"trials: 100, sampler: random, pruner: {{asha: {{min_epochs: 2}}}}, max_epochs: {budget}"
    outcome, _ = replayed(space(settings), Saturating(), workers=2)
    assert any(trial.state == "complete" for trial in outcome.record.trials)


@pytest.fixture
def trained(tiny: Path, imgcls: Callable[..., Answer]) -> Path:
    """A study in which every combination of a small space was trained to its end."""
    tiny.write_text(
        "study: {trials: 8, pruner: none, sampler: grid, pictures: false}\ndata: {digits: {max_train: 100}}\n"
        "model: {lenet5: {width: {choice: [0.5, 1]}, activation: {choice: [relu, tanh]}}}\n"
        "optimizer: {adamw: {lr: {choice: [0.001, 0.01]}}}\ntraining: {epochs: 4, batch_size: 50}\n"
    )
    assert imgcls("run", tiny, "--workers", "1").code == 0
    return tiny


@pytest.mark.slow
def test_replay_decides_as_the_real_run_on_the_same_curves(trained: Path, imgcls: Callable[..., Answer]) -> None:
    asha = "study.pruner={asha: {min_epochs: 1, eta: 2}}"
    assert imgcls("run", trained, "--workers", "1", "--set", asha, "--name", "real").code == 0
    studies = trained.parent / "studies"
    curves = Recorded(load(StudyFiles(studies, "tiny-digits")).trials)
    changed = read_space(trained, catalog(), overrides=[tuple(asha.split("=", 1))])
    filled = changed.fill({"image.size": 8, "image.channels": 1})
    outcome, _ = replayed(filled, curves)
    real = load(StudyFiles(studies, "real")).trials
    assert [facts(trial) for trial in outcome.record.trials] == [facts(trial) for trial in real]
    assert len({trial.epoch for trial in real}) > 1

    answer = imgcls("replay", "tiny-digits", "--pruner", "asha", "--pruner", "halving", "--sampler", "random", "--json")
    assert answer.code == 0, answer.err
    was, asked, halved = json.loads(answer.out)["replays"]
    assert (was["epochs"], was["complete"]) == (32, 8)
    assert asked["strategy"] == "random + asha"
    assert asked["trials"] == halved["trials"] == 8
    assert asked["epochs"] < 32
    assert asked["extended"] == 0
    assert asked["best"] <= was["best"]
    table = imgcls("replay", "tiny-digits", "--pruner", "asha")
    assert "grid + asha" in table.out
    wrong = imgcls("replay", "tiny-digits", "--pruner", "ahsa")
    assert wrong.code == 2
    assert "did you mean 'asha'?" in wrong.err


def test_stopped_curve_goes_on_as_its_nearest_complete_neighbour() -> None:
    full = [trial(0, 0.1, 0.2, 0.6, state="complete"), trial(1, 0.5, 0.6, 0.7, state="complete")]
    short = trial(2, 0.45, state="pruned")
    for number, each in enumerate([*full, short]):
        each.candidate = _candidate(number)
    curves = Recorded([*full, short])
    assert curves.at(short.candidate.config, 1)["accuracy"] == 0.45
    assert curves.at(short.candidate.config, 3)["accuracy"] == pytest.approx(0.65)
    assert curves.at(short.candidate.config, 3)["epoch"] == 3
    # A measure stays within its bounds, which a loss has not above.
    for each, losses in ((full[0], [0.1, 0.2, 0.6]), (full[1], [0.5, 0.9, 1.4]), (short, [0.8])):
        each.epochs = [{**epoch, "loss": loss} for epoch, loss in zip(each.epochs, losses, strict=True)]
    assert curves.at(short.candidate.config, 3)["loss"] == pytest.approx(1.7)
    full[1].epochs[2]["accuracy"] = 3.0
    assert curves.at(short.candidate.config, 3)["accuracy"] == 1.0
    short.epochs = [*short.epochs, short.epochs[0], short.epochs[0]]
    assert Recorded([*full, trial_like(short)]).num_extended([short]) == 2


def facts(trial: Trial) -> tuple[object, ...]:
    """Return what a replay must have in common with a real run."""
    values = trial.values if trial.state == "complete" else None
    shown = [epoch["accuracy"] for epoch in trial.epochs]
    return trial.candidate.config, trial.state, shown, trial.judged, trial.reason, values


def _candidate(number: int) -> Candidate:
    return Candidate(params={}, distributions={}, config=TrialConfig.from_dict({"config": {"rate": number}}))


def trial_like(other: Trial) -> Trial:
    return replace(other, epochs=other.epochs[:1])


@pytest.mark.slow
def test_replay_of_too_little_is_refused(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    assert imgcls("run", tiny, "--set", "study.trials=1").code == 0
    answer = imgcls("replay", "tiny-digits", "--pruner", "asha")
    assert answer.code == 2
    assert "a replay needs at least 2" in answer.err


@pytest.mark.slow
def test_parts_of_a_study_give_intervals(trained: Path, imgcls: Callable[..., Answer]) -> None:
    strategies = ("--sampler", "random", "--pruner", "none", "--pruner", "{asha: {min_epochs: 1}}")
    few = ("replay", "tiny-digits", "--seeds", "6", "--share", "0.75", "--max-epochs", "12")
    asked = imgcls(*few, *strategies, "--json")
    assert asked.code == 0, asked.err
    found = json.loads(asked.out)
    assert (found["seeds"], found["configurations"], found["max_epochs"], found["trainings"]) == (6, 6, 12, 3)
    plain, asha = found["strategies"]
    assert (plain["strategy"], asha["strategy"]) == ("random + none", "random + asha")
    assert plain["over_first"] is None
    assert asha["over_first"]["low"] <= asha["over_first"]["value"] <= asha["over_first"]["high"]
    # Three random trainings end where three random trainings are expected to, but for chance.
    assert abs(plain["over_random"]["value"]) < 0.2
    table = imgcls("replay", "tiny-digits", *strategies, "--seeds", "6", "--share", "0.75", "--max-epochs", "12")
    assert "6 parts of 6 configurations; 12 epochs for each search, 3 full trainings" in table.out
    for wrong, line in (
        (("--max-epochs", "3"), "3 epochs for each search; allowed: 4, of one full training, to 20"),
        (("--share", "0.2"), "intervals need at least 4 in a part"),
        (("--seed", "1"), "--seed: has no effect together with --seeds"),
    ):
        answer = imgcls("replay", "tiny-digits", "--seeds", "3", *wrong)
        assert answer.code == 2
        assert line in answer.err
