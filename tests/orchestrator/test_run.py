"""The contract of a run: what is promised when processes are stopped, killed, or ended from outside."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.conftest import PATIENCE, Answer, linux_only
from tests.gate import LIMITS, Gate, slow_epochs

SLOW_TRIALS = (
    *("--set", "training.epochs=12", "--set", "data.digits.max_train=1000"),
    *("--set", "study.pruner=none", "--set", "study.trials=3"),
)
"""Long enough that a kill finds a trial in the middle."""

LIMITED = ("--set", f"limits={LIMITS}")
"""Has what makes epochs slow called: what was seen of a trial is still so when a test does something about it."""


@pytest.fixture
def begin(start: Callable[..., Any]) -> Callable[..., Any]:
    """Start a run and return its process; whatever is left of it is killed at the end."""

    def run(*arguments: str | Path, **settings: Any) -> Any:
        return start("run", *arguments, **settings)

    return run


def open_study(folder: Path, name: str = "tiny-digits") -> optuna.Study:
    return optuna.load_study(storage=f"sqlite:///{folder}/{name}.db", study_name=name)


def table(folder: Path) -> list[Any]:
    """Return everything about a study that must not depend on what happened to its processes."""
    return [
        (trial.number, trial.state.name, trial.values, trial.params, trial.intermediate_values, without_times(trial))
        for trial in open_study(folder).trials
    ]


def without_times(trial: optuna.trial.FrozenTrial) -> list[Mapping[str, float]]:
    return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in trial.user_attrs["epochs"]]


def wait_for(condition: Callable[[], Any], seconds: float = PATIENCE, *, pause: float = 0.05) -> Any:
    """Return what a condition gives as soon as that is true; to look takes time from those who are waited for."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(pause)
    raise AssertionError("it did not happen in time")


def noted(folder: Path, key: str, name: str = "tiny-digits") -> list[Any]:
    """Return what each trial of a study has under a key now, None where it is not there; none before there is a study.

    To read the table itself takes a hundredth of Optuna's look, which those who wait would take from those who train.
    """
    if not (folder / f"{name}.db").exists():
        return []
    query = (
        "SELECT value_json FROM trials LEFT JOIN trial_user_attributes AS noted"
        " ON noted.trial_id = trials.trial_id AND key = ? ORDER BY number"
    )
    with closing(sqlite3.connect(folder / f"{name}.db", timeout=60)) as connection:
        return [text and json.loads(text) for (text,) in connection.execute(query, (key,))]


def epochs_recorded(folder: Path, name: str = "tiny-digits") -> int:
    return sum(len(epochs or ()) for epochs in noted(folder, "epochs", name))


def wait_for_epochs(process: Any, epochs: int, folder: Path) -> None:
    def answer() -> bool:
        assert process.poll() is None, process.communicate()
        return epochs_recorded(folder) >= epochs

    wait_for(answer, pause=0.1)


def wait_for_gate(process: Any, gate: Gate, trainers: int) -> None:
    """Wait until so many processes have come to a gate."""

    def answer() -> bool:
        assert process.poll() is None, process.communicate()
        return gate.reached() >= trainers

    wait_for(answer, pause=0.1)


def children(pid: int) -> list[int]:
    """Return the processes that a process started and that still live."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def offspring_of(pid: int) -> list[int]:
    """Return the processes that work for a run; the one that forked them only waits, and may take longer to end."""
    return [forked for server in children(pid) for forked in children(server)]


def worker_of(pid: int) -> int:
    """Return the youngest process of a run: the helper is started first, the worker after it."""
    return youngest(offspring_of(pid))


def youngest(pids: Sequence[int]) -> int:
    """Return the process that was started last; numbers begin again at the lowest when all were given."""

    def started(pid: int) -> tuple[int, int]:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]), pid

    return max(pids, key=started)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@linux_only
def test_killed_and_resumed_equals_undisturbed(
    tiny: Path, begin: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    # Each process trains four epochs, long enough to be worth a checkpoint, of the fifteen of three trials.
    gate = Gate(tiny.parent / "gate", epochs=4, seconds=0.5)
    arguments = (tiny, "--workers", "1", "--set", "study.pruner=none", "--set", "study.trials=3", *gate.options)
    undisturbed, disturbed = tiny.parent / "a", tiny.parent / "b"
    for number in range(3):
        process = begin(*arguments, "--studies", disturbed, env=gate.env)
        wait_for_gate(process, gate, number + 1)
        offspring = offspring_of(process.pid)
        process.kill()
        process.wait()
        # Orphans would go on training and overwrite checkpoints.
        wait_for(lambda offspring=offspring: not any(is_alive(child) for child in offspring))
    gate.open()
    for folder in (disturbed, undisturbed):
        answer = imgcls("run", *arguments, "--studies", folder, env=gate.env)
        assert answer.code == 0, answer.err
    assert table(disturbed) == table(undisturbed)


@linux_only
def test_workers_end_with_their_run_in_the_middle_of_an_epoch(tiny: Path, begin: Callable[..., Any]) -> None:
    studies = tiny.parent / "studies"
    # An epoch of minutes.
    long_epochs = ("model={vit: {patch_size: 1, width: 384, depth: 12, heads: 4}}", "data.digits.max_train=1400")
    process = begin(tiny, "--workers", "1", *(part for one in long_epochs for part in ("--set", one)))

    def is_training() -> bool:
        assert process.poll() is None, process.communicate()
        return any(noted(studies, "worker"))

    wait_for(is_training)
    offspring = offspring_of(process.pid)
    process.kill()
    process.wait()
    # Nothing would be sent, and so no death be noticed, before the epoch ends.
    wait_for(lambda: not any(is_alive(child) for child in offspring), seconds=60)
    assert open_study(studies).trials[0].user_attrs.get("epochs", []) == []


@linux_only
def test_killed_worker_is_replaced_and_the_trial_goes_on(tiny: Path, begin: Callable[..., Any]) -> None:
    studies = tiny.parent / "studies"
    gate = Gate(tiny.parent / "gate", epochs=2)
    settings = ("--set", "study.pruner=none", "--set", "study.trials=3", *gate.options)
    process = begin(tiny, "--workers", "1", *settings, env=gate.env)
    wait_for_epochs(process, 2, studies)
    os.kill(worker_of(process.pid), signal.SIGKILL)
    gate.open()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "worker-0 died (killed by SIGKILL); it resumes from its last checkpoint" in out
    assert [trial.state.name for trial in open_study(studies).trials] == ["COMPLETE"] * 3
    assert all(len(trial.user_attrs["epochs"]) == 5 for trial in open_study(studies).trials)


@linux_only
def test_worker_that_keeps_dying_fails_its_trial_with_the_reason(tiny: Path, begin: Callable[..., Any]) -> None:
    studies = tiny.parent / "studies"
    gate = Gate(tiny.parent / "gate", epochs=1)
    arguments = ("--set", "study.retries=0", "--set", "study.trials=1", *gate.options)
    process = begin(tiny, "--workers", "1", "--set", "study.pruner=none", *arguments, env=gate.env)
    wait_for_epochs(process, 1, studies)
    os.kill(worker_of(process.pid), signal.SIGKILL)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "no usable trial" in err
    (trial,) = open_study(studies).trials
    assert trial.state.name == "FAIL"
    assert "killed by SIGKILL" in trial.user_attrs["reason"]
    assert "killed by SIGKILL" in (studies / trial.user_attrs["log"]).read_text()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_once_leaves_a_resumable_study(
    sent: signal.Signals, code: int, tiny: Path, begin: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    studies = tiny.parent / "studies"
    gate = Gate(tiny.parent / "gate", epochs=3)
    arguments = (tiny, "--set", "study.pruner=none", "--set", "study.trials=3", *gate.options)
    process = begin(*arguments, env=gate.env)
    wait_for_gate(process, gate, 1)
    process.send_signal(sent)
    said = next(line for line in process.stdout if "running trial" in line)
    gate.open()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, err
    assert "saving" in said
    assert "run the same command again to resume" in out
    assert "Traceback" not in err
    assert any(trial.state.name == "RUNNING" for trial in open_study(studies).trials)
    answer = imgcls("run", *arguments, env=gate.env)
    assert answer.code == 0
    assert "in no checkpoint" not in answer.out
    trials = open_study(studies).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3
    assert all(list(trial.intermediate_values) == list(range(1, 6)) for trial in trials)


def test_second_run_on_the_same_study_is_refused(
    tiny: Path, begin: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    gate = Gate(tiny.parent / "gate", epochs=1)
    arguments = (tiny, *gate.options)
    process = begin(*arguments, env=gate.env)
    wait_for_epochs(process, 1, tiny.parent / "studies")
    answer = imgcls("run", *arguments, env=gate.env)
    assert answer.code == 2
    assert f"another run is working on this study (process {process.pid})" in answer.err
    # Looking is allowed at any time.
    assert imgcls("status", "tiny-digits").code == 0


def test_trial_ended_from_outside_is_accepted(tiny: Path, begin: Callable[..., Any]) -> None:
    studies = tiny.parent / "studies"
    gate = Gate(tiny.parent / "gate", epochs=2)
    settings = ("--set", "training.epochs=50", "--set", "study.pruner=none", "--set", "study.trials=2", *gate.options)
    process = begin(tiny, "--workers", "1", *settings, env=gate.env)
    wait_for_epochs(process, 2, studies)
    open_study(studies).tell(0, state=optuna.trial.TrialState.FAIL)
    gate.open()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "ended from outside" in out
    assert [trial.state.name for trial in open_study(studies).trials] == ["FAIL", "COMPLETE"]
    assert len(open_study(studies).trials[0].user_attrs["epochs"]) < 50


def test_more_trials_continue_a_finished_study(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    arguments = ("run", tiny, "--workers", "1", "--set", "study.trials=2")
    assert imgcls(*arguments).code == 0
    before = table(tiny.parent / "studies")
    assert "finished: 2 trials" in imgcls(*arguments).out
    assert "finished: 4 trials" in imgcls("run", tiny, "--workers", "1").out
    assert table(tiny.parent / "studies")[:2] == before


def test_asha_pauses_promotes_and_closes(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    settings = ("--set", "study.pruner={asha: {min_epochs: 1, eta: 2}}", "--set", "study.trials=7")
    answer = imgcls("run", tiny, *settings)
    assert answer.code == 0, answer.err
    trials = open_study(tiny.parent / "studies").trials
    # Said once, whatever their number.
    assert answer.out.count("the search ended before they were promoted") == 1
    lengths = [len(trial.user_attrs["epochs"]) for trial in trials]
    assert len(trials) == 7
    assert set(lengths) <= {1, 2, 4, 5}
    assert lengths.count(1) >= 2
    assert max(lengths) == 5
    for trial in trials:
        assert trial.state.name == ("COMPLETE" if len(trial.user_attrs["epochs"]) == 5 else "PRUNED")
    # Whoever was promoted from the first rung was among its better half at the end.
    first = sorted(trials, key=lambda trial: -trial.intermediate_values[1])
    promoted = {trial.number for trial in trials if len(trial.user_attrs["epochs"]) > 1}
    assert first[0].number in promoted


@pytest.mark.slow
def test_paused_trials_survive_an_interruption(
    tiny: Path, begin: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    asha = (
        "--set",
        "study.pruner={asha: {min_epochs: 1, eta: 3}}",
        "--set",
        "study.trials=12",
        "--set",
        "training.epochs=9",
        *LIMITED,
    )
    env = slow_epochs(tiny.parent / "slow", 0.3)
    process = begin(tiny, *asha, env=env)

    wait_for(lambda: sum(plan["paused"] for plan in noted(tiny.parent / "studies", "plan")) >= 2, pause=0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    status = json.loads(imgcls("status", "tiny-digits", "--json").out)
    assert status["trials"]["paused"] >= 2
    assert imgcls("run", tiny, *asha, env=env).code == 0
    trials = open_study(tiny.parent / "studies").trials
    assert len(trials) == 12
    assert all(trial.state.is_finished() for trial in trials)
    # Only the best three keep their weights.
    assert len(list(tiny.parent.glob("studies/tiny-digits/checkpoints/*.pt"))) <= 3


def test_paused_trial_ended_from_outside_is_accepted(
    tiny: Path, start: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    studies = tiny.parent / "studies"
    asha = ("--set", "study.pruner={asha: {min_epochs: 1, eta: 3}}", "--set", "study.trials=8")
    long = ("--set", "training.epochs=9", *LIMITED)
    process = start("run", tiny, "--workers", "1", *asha, *long, env=slow_epochs(tiny.parent / "slow", 0.3))

    def resting() -> list[int]:
        if not any(plan["paused"] for plan in noted(studies, "plan")):
            return []
        trials = open_study(studies).trials
        return [t.number for t in trials if t.user_attrs["plan"]["paused"] and not t.state.is_finished()]

    (number, *_) = wait_for(resting, pause=0.2)
    open_study(studies).tell(number, state=optuna.trial.TrialState.FAIL)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    trials = open_study(studies).trials
    assert len(trials) == 8
    assert all(trial.state.is_finished() for trial in trials)
    assert trials[number].state.name == "FAIL"


def test_limits_reject_before_training_and_count_by_reason(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    settings = ("--set", "limits.params=10000", "--set", "study.sampler=random", "--set", "study.trials=6")
    assert imgcls("run", tiny, *settings).code == 0
    trials = open_study(tiny.parent / "studies").trials
    assert len(trials) == 6
    assert all(trial.user_attrs["params"] <= 10000 for trial in trials)
    status = json.loads(imgcls("status", "tiny-digits", "--json").out)
    assert status["rejected"]["limits.params: over 10000"] >= 1


def test_space_in_which_nothing_fits_ends_with_the_numbers(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    tiny.write_text("model: {lenet5: {width: {choice: [1, 2]}}}\nlimits: {params: 100}\n")
    answer = imgcls("run", tiny)
    assert answer.code == 1
    assert "2 x limits.params: over 100" in answer.err


def test_impossible_combination_names_its_path(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    tiny.write_text(
        "study: {trials: 2}\ndata: {digits: {max_train: 100}}\nmodel: {vit: {patch_size: {choice: [3, 5]}}}\n"
    )
    answer = imgcls("run", tiny)
    assert answer.code == 1
    assert "model.vit.patch_size: 3 does not divide the image size 8" in answer.err


def test_finite_space_ends_as_exhausted_without_repeats(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    fixed = ("--set", "optimizer.adamw.lr=1e-3", "--set", "study.trials=50", "--set", "training.epochs=1")
    for sampler in ("tpe", "grid"):
        answer = imgcls("run", tiny, *fixed, "--set", f"study.sampler={sampler}", "--name", sampler)
        assert answer.code == 0, answer.err
        assert "exhausted: 4 trials" in answer.out
        params = [json.dumps(t.params, sort_keys=True) for t in open_study(tiny.parent / "studies", sampler).trials]
        assert len(set(params)) == 4


def test_several_objectives_say_how_they_are_pruned_and_few_curves_stop_nothing(
    tiny: Path, imgcls: Callable[..., Answer]
) -> None:
    objectives = ("--set", "study.objectives={accuracy: maximize, params: minimize}")
    answer = imgcls("run", tiny, *objectives)
    assert answer.code == 0, answer.err
    assert "Warning" not in answer.err
    assert "several objectives: at the rungs of halving, a trial is stopped if another one would beat it" in answer.out
    known = open_study(tiny.parent / "studies")
    assert all(trial.state.name == "COMPLETE" for trial in known.trials)
    front = json.loads(imgcls("best", "tiny-digits", "--json").out)["best"]
    assert {trial["trial"] for trial in front} >= {trial.number for trial in known.best_trials}


@pytest.mark.parametrize("sampler", ["random", "gp", "cmaes", "nsga2", "qmc"])
@pytest.mark.slow
def test_every_sampler_searches(sampler: str, tiny: Path, imgcls: Callable[..., Answer]) -> None:
    tiny.write_text(
        "study: {pictures: false}\ndata: {digits: {max_train: 100}}\nmodel: {lenet5: {width: {float: [0.5, 1.5]}}}\n"
        "optimizer: {adamw: {lr: {float: [1e-4, 1e-2], log: true}}}\ntraining: {epochs: 1}\n"
    )
    answer = imgcls("run", tiny, "--set", f"study.sampler={sampler}", "--set", "study.trials=14")
    assert answer.code == 0, answer.err
    params = {json.dumps(trial.params) for trial in open_study(tiny.parent / "studies").trials}
    assert len(params) == 14


def test_timeout_leaves_the_rest_for_the_next_call(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    long = ("--set", "training.epochs=100000", "--set", "study.pruner=none", "--set", "study.trials=3")
    # On a busy machine it takes longer until both workers are busy.
    for seconds in (2, 8, 32, 128):
        answer = imgcls("run", tiny, *long, "--set", f"study.timeout={seconds}", "--name", f"for-{seconds}")
        trials = open_study(tiny.parent / "studies", f"for-{seconds}").trials
        if len(trials) == 2:
            break
    assert "timeout: saving 2 running trials" in answer.out
    assert answer.code == 1  # no trial was complete yet
    assert [trial.state.name for trial in trials] == ["RUNNING"] * 2


def test_diverged_trial_is_pruned_with_its_evidence(tiny: Path, imgcls: Callable[..., Answer]) -> None:
    settings = ("--set", "optimizer={sgd: {lr: {float: [1e20, 1e30], log: true}}}", "--set", "study.trials=2")
    answer = imgcls("run", tiny, *settings)
    assert answer.code == 1
    for trial in open_study(tiny.parent / "studies").trials:
        assert trial.state.name == "PRUNED"
        assert "nan" in trial.user_attrs["reason"] or "inf" in trial.user_attrs["reason"]
        assert "DivergedError" in (tiny.parent / "studies" / trial.user_attrs["log"]).read_text()
