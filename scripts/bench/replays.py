"""Compare search strategies on tables of real trainings, on the same pools, with intervals.

    python scripts/bench/replays.py
    python scripts/bench/replays.py --tables cells heads --pools 200 --processes 2
    python scripts/bench/replays.py --opda replay/opda-alexnet --tables opda-20 opda-54 --strategies default tpe+median

A pool is a random part (`--share`) of a table's configurations, each with one of its recorded seeds; the pool's number
is the seed of the draw. All strategies search the same pools and can choose only configurations of the pool. The budget
is `--trainings` full trainings, counted in epochs. `speed` is how many times fewer epochs a strategy needs for the
final result of random search, whose expectation is exact. `end` is its final result minus that of random search, and
`over NAME` minus that of another strategy, in percentage points. The 90 % intervals come from resampling the pools.

`taught` is the default that begins with what the trainings of the other recorded tables say, as with earlier studies;
tables of the same images are left out.

The tables are those of record_curves.py. With `--opda` there are also 512 trainings of AlexNet on ImageNet
(nicholaslourie/opda): `opda-20` reports each training in 20 equal parts, `opda-54` has the trainings that were planned
for at least 54 epochs, up to the 54th. Results are kept in replays.jsonl, so that a stopped run can resume.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import frame
import numpy as np
from curve_tables import TABLES, Training, opda, read_table, space_of
from imgcls_search.config import TrialConfig
from imgcls_search.jobs.pools import Estimate, PoolSearch, difference, end_of, expected_best, speed_of
from imgcls_search.jobs.replay import FromPool, replay
from imgcls_search.orchestrator.learning import MOST_ROWS
from imgcls_search.signature import build
from imgcls_search.space import Space, parse
from imgcls_search.strategy.draws import fixed_candidate
from imgcls_search.strategy.earlier import EarlierStudy, EarlierTrial
from imgcls_search.strategy.samplers import SAMPLERS
from imgcls_search.strategy.view import View
from imgcls_search.trial import Candidate

STRATEGIES: Mapping[str, tuple[str, str]] = {
    "default": ("auto", "asha"),
    "first rung 2": ("auto", "{asha: {min_epochs: 2}}"),
    "tpe+median": ("tpe", "median"),
    "random+asha": ("random", "asha"),
    "curves+median": ("curves", "median"),
    "tpe+asha": ("tpe", "asha"),
    "random": ("random", "none"),
    "taught": ("auto", "asha"),
}
"""Sampler and pruner. `random` runs only if it is named, because its expectation is known."""

IMAGES = {"cifar": "CIFAR-10", "cells": "CIFAR-10", "trashnet": "TrashNet", "heads": "TrashNet"}
"""The images of recorded tables."""

LESSONS = ("cifar", "trashnet", "heads")
"""Tables whose settings other spaces have too."""

RECORDED = ("cifar", "trashnet", "heads", "cells")
OF_OPDA = {"opda-20": 20, "opda-54": 54}


@dataclass(frozen=True)
class Table:
    """Configurations with their recorded trainings, and their space."""

    space: Space
    epochs: int
    candidates: Sequence[Candidate]
    curves: Sequence[Sequence[Sequence[float]]]
    """Accuracy by configuration, training and epoch; NaN after a training diverged."""


@dataclass(frozen=True)
class Asked:
    """One search."""

    table: str
    strategy: str
    pool: int
    trainings: int
    share: float
    tables: Path
    opda: Path | None

    @property
    def key(self) -> list[Any]:
        """The fields that identify the search."""
        return [self.table, self.strategy, self.pool, self.trainings, self.share]


class Pool:
    """The curves of a part of a table."""

    def __init__(self, table: Table, number: int, share: float) -> None:
        """Draw the pool with this number."""
        rng = np.random.default_rng([number, len(table.candidates)])
        chosen = rng.permutation(len(table.candidates))[: max(2, round(share * len(table.candidates)))]
        self.candidates = [table.candidates[place] for place in chosen]
        self.curves: dict[TrialConfig, Sequence[float]] = {
            table.candidates[place].config: table.curves[place][int(rng.integers(len(table.curves[place])))]
            for place in chosen
        }

    def at(self, config: TrialConfig, epoch: int) -> Mapping[str, float]:
        """Return the accuracy of an epoch."""
        return {"accuracy": self.curves[config][epoch - 1]}

    @property
    def ends(self) -> list[float]:
        """The last accuracy of each configuration."""
        return [curve[-1] for curve in self.curves.values()]


@cache
def table_of(name: str, tables: Path, opda_folder: Path | None) -> Table:
    """Return a table by its name."""
    if name in OF_OPDA:
        text, trainings = opda(opda_folder or Path(), OF_OPDA[name])
        space = parse_open(text)
    else:
        space, trainings = space_of(name), read_table(tables / f"{name}.jsonl.xz")
    if not trainings:
        raise SystemExit(f"{name}: the table has no trainings; python scripts/bench/record_curves.py records some")
    epochs = space.first().epochs
    by_number: dict[int, list[Training]] = {}
    for training in trainings:
        by_number.setdefault(training.number, []).append(training)
    view = View(space, [], [], seed=0)
    each = list(by_number.values())
    curves = [[padded(one.curve["accuracy"], epochs) for one in several] for several in each]
    return Table(space, epochs, [fixed_candidate(view, several[0].params) for several in each], curves)


def padded(curve: Sequence[float], epochs: int) -> list[float]:
    """Return the curve filled up with NaN to all epochs, after it diverged."""
    return [*curve, *[math.nan] * (epochs - len(curve))]


def parse_open(text: str) -> Space:
    """Parse a space that may have a section `config` for settings without a path in our spaces."""
    from imgcls_search.catalog import catalog
    from imgcls_search.jobs.replay import OPEN_VALUE
    from imgcls_search.signature import Fields

    known = catalog()
    config = replace(known.config, fields={**known.config.fields, "config": Fields(others=OPEN_VALUE)})
    return parse(text, replace(known, config=config), source="opda")


def search(asked: Asked) -> dict[str, Any]:
    """Run one search."""
    table = table_of(asked.table, asked.tables, asked.opda)
    pool = Pool(table, asked.pool, asked.share)
    sampler, pruner = STRATEGIES[asked.strategy]
    own = {"sampler": sampler, "pruner": pruner, "seed": asked.pool, "trials": len(pool.candidates)}
    space = with_study(table.space, {**own, "max_epochs": asked.trainings * table.epochs})
    began = time.process_time()
    drawn = FromPool(build(SAMPLERS, space.sampler, space=space), pool.candidates, space)
    earlier = lessons(asked) if asked.strategy == "taught" else ()
    outcome, steps = replay(space, pool, sampler=drawn, earlier=earlier)
    trials = len(outcome.record.trials)
    return {
        "key": asked.key,
        "bests": steps.bests,
        "expected": expected_best(pool.ends, asked.trainings),
        "trials": trials,
        "ms_a_trial": round(1e3 * (time.process_time() - began) / trials, 1),
    }


def lessons(asked: Asked) -> list[EarlierStudy]:
    """Return other tables as earlier studies of full trainings; the same configurations for every pool."""
    found = []
    for name in LESSONS:
        if IMAGES[name] != IMAGES.get(asked.table):
            table = table_of(name, asked.tables, asked.opda)
            chosen = np.random.default_rng(len(table.candidates)).permutation(len(table.candidates))[:MOST_ROWS]
            ends = [table.curves[place][0][-1] for place in chosen]
            trials = [
                EarlierTrial(
                    settings=table.candidates[place].params, reached=1.0, value=-math.inf if math.isnan(end) else end
                )
                for place, end in zip(chosen, ends, strict=True)
            ]
            found.append(EarlierStudy(name=name, trials=trials))
    return found


def with_study(space: Space, settings: Mapping[str, Any]) -> Space:
    """Return a space with other settings of `study`, given as in a space file."""
    text = ", ".join(f"{name}: {value}" for name, value in settings.items())
    rules = parse_open(
        f"study: {{{text}}}\ndata: {{digits: {{}}}}\nmodel: {{lenet5: {{}}}}\noptimizer: {{sgd: {{}}}}\n"
    )
    return replace(space, study={**rules.study, "objectives": space.study["objectives"]}, start=())


def collect(asked: Sequence[Asked], processes: int, log: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Run all searches that are not in the log yet."""
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    known = {json.dumps(each["key"]): each for each in done}
    left = [each for each in asked if json.dumps(each.key) not in known]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as workers, log.open("a") as file:
        for count, ended in enumerate(as_completed([workers.submit(search, each) for each in left])):
            found = ended.result()
            known[json.dumps(found["key"])] = found
            file.write(json.dumps(found) + "\n")
            file.flush()
            if (count + 1) % 20 == 0:
                print(f"{count + 1} of {len(left)} searches", flush=True)
    return {(each.table, each.strategy, each.pool): known[json.dumps(each.key)] for each in asked}


def summarise(
    found: Mapping[tuple[str, str, int], Mapping[str, Any]], table: str, given: argparse.Namespace, budget: int
) -> dict[str, Any]:
    """Return the figures of each strategy on a table."""
    searches = {
        name: [
            PoolSearch(bests=found[table, name, pool]["bests"], expected=found[table, name, pool]["expected"])
            for pool in range(given.pools)
        ]
        for name in given.strategies
    }
    first = given.strategies[0]
    answer: dict[str, Any] = {}
    for name, several in searches.items():
        answer[name] = {
            "speed": shown(speed_of(several, budget)),
            "end": shown(end_of(several, budget), 100),
            "ms_a_trial": round(mean(found[table, name, pool]["ms_a_trial"] for pool in range(given.pools)), 1),
        }
        if name != first:
            answer[first][f"over {name}"] = shown(difference(searches[first], several, budget), 100)
    return answer


def shown(estimate: Estimate, unit: float = 1) -> list[float] | None:
    """Return a figure and its interval; None if some search has no complete trial with a value."""
    if math.isnan(estimate.value):
        return None
    return [round(unit * value, 3) for value in (estimate.value, estimate.low, estimate.high)]


def main() -> None:
    """Run the benchmark."""
    parser = frame.make_parser(__doc__)
    parser.add_argument("--recorded", type=Path, default=TABLES, help="the folder with the recorded tables")
    parser.add_argument("--opda", type=Path, help="the folder with alexnet_tuning.results.jsonl")
    parser.add_argument("--tables", nargs="+", choices=[*RECORDED, *OF_OPDA], help="default: all that are there")
    strategies = ["default", "tpe+median", "random+asha"]
    parser.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), default=strategies)
    parser.add_argument("--pools", type=int, default=200)
    parser.add_argument("--share", type=float, default=0.5, help="of the configurations in a pool; default: 0.5")
    parser.add_argument("--trainings", type=int, default=20, help="full ones that a search may spend; default: 20")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    there = [name for name in RECORDED if (given.recorded / f"{name}.jsonl.xz").exists()]
    tables = given.tables or [*there, *(OF_OPDA if given.opda else ())]
    if set(tables) & OF_OPDA.keys() and given.opda is None:
        parser.error("opda-20 and opda-54 need --opda FOLDER")
    asked = [
        Asked(table, strategy, pool, given.trainings, given.share, given.recorded, given.opda)
        for pool in range(given.pools)
        for table in tables
        for strategy in given.strategies
    ]
    given.out.mkdir(parents=True, exist_ok=True)
    with frame.results("replays", given.out) as written:
        found = collect(asked, given.processes, given.out / "replays.jsonl")
        written |= {"pools": given.pools, "share": given.share, "trainings": given.trainings, "tables": {}}
        for name in tables:
            table = table_of(name, given.recorded, given.opda)
            answer = summarise(found, name, given, given.trainings * table.epochs)
            trainings = sum(map(len, table.curves))
            written["tables"][name] = {"configurations": len(table.curves), "recorded": trainings, **answer}
            print(f"{name}: {len(table.curves)} configurations, {trainings} trainings, {table.epochs} epochs each")
            for strategy, figures in answer.items():
                print(f"  {strategy}: {figures}")


if __name__ == "__main__":
    main()
