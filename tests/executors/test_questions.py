"""What the run and its processes say to each other arrives as it was sent."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from imgcls_search import protocol
from imgcls_search.catalog import catalog
from imgcls_search.data import InputShape, Prepared, Prints
from imgcls_search.errors import BuildError, SearchError, SpaceError
from imgcls_search.executors import questions
from imgcls_search.executors.counts import Counts
from imgcls_search.executors.questions import Decoding, Measure, Notice, Question, Refusal
from imgcls_search.space import parse

CONFIG = parse("model: {lenet5: {width: 2}}\n", catalog(), source="space.yaml").first()
SHAPE = InputShape(image_size=8, channels=1, classes=10)
DATA = Prepared(
    fingerprint="2-abc",
    classes=("cat", "dog"),
    image_size=8,
    channels=1,
    counts={"train": 2, "val": 1, "test": 1},
    class_counts=(1, 1),
    mean=(0.5,),
    std=(0.25,),
    folder="images",
)
ARGUMENTS: dict[str, Any] = {
    "FindDevices": {"wanted": "cpu"},
    "NameHardware": {"device": "cpu"},
    "Prepare": {"config": CONFIG, "cache": Path("images"), "is_described": True},
    "ComparePrints": {"config": CONFIG, "cache": Path("images"), "known": Prints(whole="2-abc", seen="2-def")},
    "Measure": {"config": CONFIG, "shape": SHAPE, "counts": Path("counts")},
    "FetchWeights": {"config": CONFIG, "shape": SHAPE},
    "DescribeWeights": {"path": Path("seed-1.pt")},
    "DescribeBackbone": {"path": Path("backbone.pt")},
    "OpenUnlabeled": {"config": CONFIG, "data": DATA, "cache": Path("images"), "fold": 1},
    "KeepTeacher": {
        "component": CONFIG.component("model"),
        "data": DATA,
        "image_size": 96,
        "answers": False,
        "folder": Path("teachers"),
    },
    "NameVersions": {},
    "TryMetrics": {"names": ("cost",), "data": DATA},
}


def test_every_question_arrives_whole() -> None:
    assert ARGUMENTS.keys() == {kind.__name__ for kind in Question.__subclasses__()}
    for name, arguments in ARGUMENTS.items():
        asked = getattr(questions, name)(**arguments)
        assert pickle.loads(pickle.dumps(asked)) == asked  # noqa: S301 - made here


@pytest.mark.parametrize("message", [protocol.Stop(), protocol.Pause(), protocol.Continue()])
def test_what_a_worker_is_told_arrives(message: protocol.Message) -> None:
    job = protocol.Job(
        trial=3,
        config=CONFIG,
        data={"folder": "images"},
        seed=1,
        portion="train",
        until_epoch=2,
        from_epoch=0,
        checkpoint="a.pt",
        log="a.log",
    )
    for sent in (message, job):
        arrived = pickle.loads(pickle.dumps(sent))  # noqa: S301 - made here
        assert arrived == sent
        assert type(arrived) is type(sent)


@pytest.mark.parametrize("error", [BuildError("model.vit.depth", "is 0"), SpaceError("space.yaml", [])])
def test_a_refusal_arrives_as_the_error_that_it_is(error: SearchError) -> None:
    arrived = pickle.loads(pickle.dumps(Refusal(error)))  # noqa: S301 - made here
    assert type(arrived.error) is type(error)
    assert str(arrived.error) == str(error)


def test_sizes_are_counted_once_and_the_images_are_told_of(tmp_path: Path) -> None:
    asked = Measure(config=CONFIG, shape=SHAPE, counts=tmp_path / "counts")
    said: list[Decoding | Notice] = []
    sizes = asked.answer(said.append)
    assert sizes["params"] > 0
    assert said == []
    known = Counts(tmp_path / "counts")
    question = {"model": CONFIG.to_dict()["model"], "shape": {"image_size": 8, "channels": 1, "classes": 10}}
    assert known.get(question)["params"] == sizes["params"]
    config = parse("data: {digits: {max_train: 50}}\nmodel: {lenet5: {}}\n", catalog(), source="space.yaml").first()
    prepared = questions.Prepare(config=config, cache=tmp_path / "images", is_described=True).answer(said.append)
    assert prepared.counts["train"] == 50
    assert {type(each) for each in said} == {Decoding, Notice}
