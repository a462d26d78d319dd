"""What a draft reads off images, machine and time, and that each draft is a space that can be run."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from imgcls_search import durations
from imgcls_search.catalog import catalog
from imgcls_search.config import Component
from imgcls_search.data import describe
from imgcls_search.errors import DataError, UserError
from imgcls_search.jobs.init import draft as drafts
from imgcls_search.jobs.init import images as looks
from imgcls_search.jobs.init import machine as machine_facts
from imgcls_search.jobs.init import rules, speed, text
from imgcls_search.jobs.init.columns import guess_columns
from imgcls_search.jobs.init.cuts import possible_cuts
from imgcls_search.jobs.init.fits import HALF, VIEWS_SHARE, WHOLE, Work, fit_pretrained
from imgcls_search.jobs.init.images import ImageFacts, given_splits, hint_at_groups, look_at_images
from imgcls_search.jobs.init.machine import Machine
from imgcls_search.jobs.init.networks import Network, from_scratch, merged
from imgcls_search.jobs.init.plan import Budget, make_plan
from imgcls_search.jobs.init.sizes import native_size
from imgcls_search.space import parse
from PIL import Image

from tests.conftest import PATIENCE


def quiet(what: str, done: int, total: int) -> None:
    """Show nothing."""


def picture(path: Path, size: tuple[int, int], seed: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, 3)).astype(np.uint8)
    Image.fromarray(small).resize(size).convert("L").convert(mode).save(path) if mode != "RGB" else Image.fromarray(
        small
    ).resize(size).save(path)


def pictures(
    folder: Path, each: Mapping[str, int], size: tuple[int, int] = (48, 32), mode: str = "RGB", seed: int = 0
) -> Component:
    for name, count in each.items():
        for number in range(count):
            seed += 1
            picture(folder / name / f"{number}.png", size, seed, mode)
    return component(folder)


def component(folder: Path, **args: Any) -> Component:
    written = {"root": str(folder), **args}
    config = parse(
        "study: {name: x}\nmodel: {lenet5: {}}", catalog(), source="x", overrides=[("data", f"{{folder: {written}}}")]
    )
    return config.first().component("data")


def table(file: Path, **args: Any) -> Component:
    return Component(
        path="data.table",
        name="table",
        args={
            "file": str(file), "image": "image", "label": "label", "separator": None, "split": None, "group": None,
            "root": None, **args,
        },
    )  # fmt: skip


def look(data: Component, seconds: float = PATIENCE) -> ImageFacts:
    return look_at_images(describe(data), data, seconds=seconds, seed=0, progress=quiet)


# ---------------------------------------------------------------------------------------------- images


def test_sizes_channels_copies_and_damage_are_seen(tmp_path: Path) -> None:
    data = pictures(tmp_path / "train", {"cat": 6, "dog": 5})
    pictures(tmp_path / "test", {"cat": 2, "dog": 2}, seed=100)
    shutil.copy(tmp_path / "train/cat/1.png", tmp_path / "test/cat/9.png")
    whole = (tmp_path / "train/dog/0.png").read_bytes()
    (tmp_path / "train/dog/0.png").write_bytes(whole[: len(whole) // 2])
    data = component(tmp_path)
    found = look(data)
    assert (found.widths, found.heights, found.sizes, found.is_grey) == ((48,) * 3, (32,) * 3, 1, False)
    assert found.given_splits == ("train", "test")
    assert found.images == found.sampled == found.decoded == 16
    assert [name.partition(" ")[0] for name in found.unreadable] == ["train/dog/0.png"]
    assert (found.copies, found.copies_across) == (1, 1)
    assert found.copy_example == "train/cat/1.png = test/cat/9.png"
    assert any("in another split" in note for note in rules.notes(found))


def test_a_copy_within_a_split_is_in_no_other(tmp_path: Path) -> None:
    pictures(tmp_path, {"cat": 6, "dog": 6})
    shutil.copy(tmp_path / "cat/1.png", tmp_path / "cat/7.png")
    found = look(component(tmp_path))
    assert (found.copies, found.copies_across) == (1, 0)


@pytest.mark.parametrize("mode", ["L", "RGB of one shade"])
def test_grey_images_are_seen_however_they_are_saved(mode: str, tmp_path: Path) -> None:
    for index in range(8):
        picture(tmp_path / "ab"[index % 2] / f"{index}.png", (20, 20), index, "L")
        if mode != "L":
            path = tmp_path / "ab"[index % 2] / f"{index}.png"
            Image.open(path).convert("RGB").save(path.with_suffix(".jpg"))
            path.unlink()
    found = look(component(tmp_path))
    assert found.is_grey


def test_an_image_turned_by_its_tag_is_as_high_as_it_is_shown(tmp_path: Path) -> None:
    for index in range(6):
        path = tmp_path / "ab"[index % 2] / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (60, 40), (index * 20, 0, 0)).save(path, exif=exif)
    assert (look(component(tmp_path)).widths[1], look(component(tmp_path)).heights[1]) == (40, 60)


def test_of_many_images_a_sample_is_read_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "MOST_HEADERS", 10)
    data = pictures(tmp_path, {"cat": 20, "dog": 20}, (12, 12))
    found = look(data)
    assert (found.images, found.sampled, found.decoded) == (40, 10, 10)
    assert "40 images: sizes are from a sample of 10" in rules.notes(found)
    # Without time headers alone are read.
    short = look(data, seconds=-1)
    assert (short.sampled, short.decoded) == (10, 0)
    assert any("pixels of 0 images were read" in note for note in rules.notes(short))


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("patient{}_{}.png", "patient"),
        ("Patient {}_{}.png", "Patient"),
        ("video-{}-{}.png", "video"),
        ("IMG_{}_{}.png", None),
        ("photo{}{}.png", None),
    ],
)
def test_names_that_plainly_speak_of_groups_are_a_hint(pattern: str, hint: str | None, tmp_path: Path) -> None:
    for number in range(12):
        for kind in ("a", "b"):
            picture(tmp_path / kind / pattern.format(number // 4, number), (10, 10), number)
    found = look(component(tmp_path)).group_hint
    if hint is None:
        assert found is None
        return
    assert found is not None
    assert f"--group '({hint}" in found
    pattern = found.split("--group '")[1].split("'")[0]
    groups = describe(component(tmp_path, group=pattern)).groups
    assert groups is not None
    assert sum(groups.values()) == 3


def test_a_hint_at_groups_names_only_an_expression_that_finds_them_all() -> None:
    words = [f"a/{word}{number}_{item}.png" for word in ("patient", "Cases") for number in (1, 2) for item in (3, 4)]
    folder = Component(path="data.folder", name="folder", args={})
    hint = hint_at_groups(words, folder)
    assert hint is not None
    assert "--group '((?:Cases|patient)[_. -]?[0-9]+)'" in hint
    # An image without a group would be refused, and a group in two spellings would be two.
    for names in ([*words * 3, "a/other.png"], [*words, "a/Patient1_5.png"]):
        hint = hint_at_groups(names, folder)
        assert hint is not None
        assert "--group" not in hint
        assert "data.table.group" in hint


def test_images_of_a_function_come_with_no_split() -> None:
    assert given_splits(Component(path="data.custom", name="custom", args={})) == ()


# ---------------------------------------------------------------------------------------------- tables

FILES = [f"{number}.jpg" for number in range(8)]
KINDS = ["cat", "dog"] * 4


@pytest.mark.parametrize(
    ("header", "columns", "guessed"),
    [
        ("image,label", [FILES, KINDS], {}),
        ("path,species", [FILES, KINDS], {"image": "path", "label": "species"}),
        ("image,label,split", [FILES, KINDS, ["train", "train", "val", "test"] * 2], {"split": "split"}),
        ("image,label,split", [FILES, KINDS, ["left", "right"] * 4], {}),
        ("image,tags", [FILES, ["cat", "dog", "cat;dog", ""] * 2], {"label": "tags", "separator": ";"}),
        ("image,label", [FILES, ["cat|dog", "dog", "cat", "cat"] * 2], {"separator": "|"}),
        ("image,label", [FILES, ["big; old", "old"] * 4], {"separator": ";"}),
        ("image,label", [FILES, ["cat, as Anna says", "dog, which barks"] + ["x"] * 6], {}),
        ("image,cat,dog", [FILES, ["0", "1"] * 4, ["1", "1", "0", "1"] * 2], {"label": ["cat", "dog"]}),
        ("a,b", [["1"] * 8, ["2"] * 8], {}),
    ],
)
def test_columns_that_are_plain_to_see_are_taken(
    header: str, columns: list[list[str]], guessed: dict[str, Any], tmp_path: Path
) -> None:
    rows = [",".join(f'"{cell}"' for cell in row) for row in zip(*columns, strict=True)]
    (tmp_path / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    found, guesses, _ = guess_columns(table(tmp_path / "labels.csv"))
    assert {name: value for name, value, _ in guesses} == guessed
    assert {name: found.args[name] for name in guessed} == guessed


@pytest.mark.parametrize(("delimiter", "quote"), [(";", ""), ("\t", ""), (";", '"'), (",", '"')])
def test_columns_are_guessed_with_every_delimiter(delimiter: str, quote: str, tmp_path: Path) -> None:
    # A comma in a cell is part of a number where semicolons separate the cells.
    rows = [["path", "species", "size"], *([name, kind, "1,5"] for name, kind in zip(FILES, KINDS, strict=True))]
    lines = [delimiter.join(f"{quote}{cell}{quote}" for cell in row) for row in rows]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    _, guesses, _ = guess_columns(table(tmp_path / "labels.csv"))
    assert {name: value for name, value, _ in guesses} == {"image": "path", "label": "species"}


def test_a_table_without_a_line_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").touch()
    with pytest.raises(DataError, match="is empty; needed: a first line"):
        guess_columns(table(tmp_path / "labels.csv"))


def test_columns_that_a_person_names_stay(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,label,kind,patient\n" + "".join(f"{n},a;b,c,1\n" for n in FILES))
    named = table(tmp_path / "labels.csv", label="kind", split="label")
    found, guesses, hints = guess_columns(named)
    assert (found, guesses) == (named, [])
    assert "--group 'patient'" in hints[0]


# ---------------------------------------------------------------------------------------------- what fits

LITE = {"timm": {"name": "tf_efficientnet_lite0", "weights": "imagenet"}}
RESNETS: list[Mapping[str, Mapping[str, Any]]] = [
    {"resnet": {"depth": depth, "weights": "imagenet"}} for depth in (18, 34)
]
MACHINES = {
    "cpu": Machine(device="cpu", hardware="x", workers=2, memory_bytes=8e9, disk_bytes=1e11),
    "cuda": Machine(device="cuda", hardware="x", workers=1, memory_bytes=8e10, disk_bytes=1e12),
    "busy": Machine(device="cpu", hardware="x", workers=2, memory_bytes=8e9, disk_bytes=1e11, slowdown=8.0),
    "poor": Machine(device="cpu", hardware="x", workers=64, memory_bytes=2e9, disk_bytes=1e6),
}


def of_weights(*models: Mapping[str, Mapping[str, Any]]) -> list[Network]:
    return [Network(model=model, largest=model, is_pretrained=True, about="x") for model in models]


def drafted(
    data: Component,
    seconds: float,
    *,
    machine: str = "cpu",
    weights: list[Network] | None = None,
    flips: str = "none",
    monkeypatch: pytest.MonkeyPatch,
) -> drafts.Draft:
    """Return a draft for a machine and weights that are given, with speeds as they are expected."""
    monkeypatch.setattr(drafts, "look_at_machine", lambda root: MACHINES[machine])
    monkeypatch.setattr(drafts, "pretrained_at_hand", lambda classes: (weights or [], []))
    monkeypatch.setattr(speed, "time_allowed", lambda seconds: 0.0)
    monkeypatch.setattr("imgcls_search.jobs.init.fits.time_allowed", lambda seconds: 0.0)
    return drafts.draft(data, seconds=seconds, root=Path("nowhere"), flips=flips)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "weights", "seconds", "machine"),
    [
        ("photos", RESNETS, 600.0, "cpu"),
        ("photos", RESNETS, 86_400.0, "cuda"),
        ("tiny", RESNETS, 600.0, "cpu"),
        ("strips", [], 600.0, "cpu"),
        ("grey", RESNETS, 60.0, "poor"),
        ("grey", [], 1.0, "cpu"),
        ("few", [], 86_400.0, "cuda"),
    ],
)
def test_every_draft_is_a_space_whose_networks_can_be_built(
    kind: str, weights: list[Any], seconds: float, machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each, size, mode = {
        "photos": ({"a": 30, "b": 12, "c": 4}, (60, 45), "RGB"),
        "tiny": ({"a": 20, "b": 20}, (5, 5), "RGB"),
        "strips": ({"a": 20, "b": 20}, (300, 40), "RGB"),
        "grey": ({"a": 20, "b": 20}, (40, 40), "L"),
        "few": ({"a": 3, "b": 3}, (70, 50), "RGB"),
    }[kind]
    data = pictures(tmp_path / "photos", each, size, mode)
    found = drafted(data, seconds, machine=machine, weights=of_weights(*weights), flips="both", monkeypatch=monkeypatch)
    space = parse(found.space, catalog(), source="draft.yaml")
    assert not space.is_config
    assert space.start
    assert describe(space.first().component("data")).classes == tuple(each)
    # Each decision stands in the file with its reason, however its lines are broken.
    words = " ".join(found.space.replace("#", " ").split()).lower()
    for one in found.decisions:
        assert " ".join(one.because.split()).lower() in words
    assert found.search_seconds + found.confirm_seconds == pytest.approx(seconds)


def test_busy_machine_is_given_less_to_compute_and_the_reason_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pictures(tmp_path / "photos", {"a": 100, "b": 100}, (224, 224), "RGB")
    pixels, notes = {}, {}
    for machine in ("cpu", "busy"):
        found = drafted(data, 600.0, machine=machine, weights=of_weights(LITE), monkeypatch=monkeypatch)
        size = yaml.safe_load(found.space)["image"]["size"]
        pixels[machine] = float(np.mean(size["choice"] if isinstance(size, dict) else size))
        notes[machine] = " ".join(found.notes)
    assert pixels["busy"] < pixels["cpu"]
    assert "expected to take 8.0 times as long" in notes["busy"]
    assert "times as long" not in notes["cpu"]


def test_slowdown_is_what_other_processes_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    for load, waits, slowdown in ((0.5, 9.0, 1.0), (1.0, 9.0, 1.0), (5.0, 9.0, 3.0), (5.0, 1.0, 1.0), (5.0, 2.0, 2.0)):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0.0, 0.0))
        # The others may be of lower priority: then they take less than their number says.
        assert machine_facts._slowdown(2, waits) == slowdown


def test_core_is_looked_at_before_its_speed_is_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pace = machine_facts.pace_of_core()
    assert min(pace.rates) > 1e7
    assert pace.waits >= 1
    network = of_weights(LITE)[0]
    slow, fast = (replace(MACHINES["cpu"], rates=(rate, rate)) for rate in (1e9, 1e11))
    assert speed.assumed(network, slow).predict == pytest.approx(100 * speed.assumed(network, fast).predict)
    data = pictures(tmp_path / "photos", {"a": 100, "b": 100}, (224, 224), "RGB")
    sides = []
    for machine in (slow, fast):
        monkeypatch.setitem(MACHINES, "cpu", machine)
        found = drafted(data, 30.0, weights=of_weights(LITE), monkeypatch=monkeypatch)
        size = yaml.safe_load(found.space)["image"]["size"]
        sides.append(float(np.mean(size["choice"] if isinstance(size, dict) else size)))
    assert sides[0] < sides[1]
    here = machine_facts.look_at_machine(tmp_path)
    assert (here.rates is not None) == (here.device == "cpu")


def test_reasons_are_comments_above_their_keys() -> None:
    tree = {"study": {"name": "x", "trials": 3}, "start": [{"model": "vit"}], "lr": {"float": [1e-5, 0.1], "log": True}}
    written = text.write(tree, {"study.trials": "Few\x1b.", "start": "Known."}, ["top"])
    assert written == (
        "# top\n\nstudy:\n  name: x\n  # Few\\x1b.\n  trials: 3\n\n# Known.\nstart:\n  - {model: vit}\n\n"
        "lr: {float: [1e-5, 0.1], log: true}\n"
    )


def test_more_time_searches_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pictures(tmp_path / "photos", {"a": 400, "b": 400}, (64, 64))
    values = []
    for seconds in (2.0, 300.0, 86_400.0):
        found = drafted(data, seconds, weights=of_weights(*RESNETS), monkeypatch=monkeypatch)
        values.append({one.path: one.value for one in found.decisions})
    assert values[0]["data.folder.max_train"] < 800
    assert "finetune.freeze" not in values[0]
    assert values[1]["finetune.freeze"] == values[2]["finetune.freeze"] == "backbone"
    low, high = values[2]["finetune.backbone_lr_factor"]["float"]
    factors = {one.get("finetune.backbone_lr_factor") for one in values[2]["start"]} - {None}
    # Inside its range, which the search can then explore in both directions.
    assert factors == {0.5}
    assert low < 0.5 < high
    assert "data.folder.max_train" not in values[2]
    assert values[2]["image.size"] == 224
    # The first configuration is a head that is fitted at once.
    assert values[1]["start"][0]["head"] == values[2]["start"][0]["head"] == "logistic"
    # Only where heads alone are trained do pictures take longer than what they are of.
    assert [one.get("study.pictures") for one in values] == [None, False, None]


@pytest.mark.parametrize(
    ("rate", "native", "size", "tuned"),
    [
        (1e-11, 224, 224, "whole"),
        # For enough epochs at 224 there is no more time, but at a smaller size.
        (3e-11, 224, 128, "whole"),
        (4e-11, 224, 128, "half"),
        (5e-11, 224, 96, "whole"),
        # Two trainings, and no time to retrain the best.
        (7e-11, 224, 128, "half"),
        # Small images are not enlarged that much for a few epochs; features of large ones teach a head more.
        (7e-11, 70, 224, None),
        (1e-10, 224, 224, None),
    ],
)
def test_slower_machines_tune_smaller_images_and_then_heads_alone(
    rate: float, native: int, size: int, tuned: str | None
) -> None:
    network = next(one for one in from_scratch(32, 3, 6) if one.name == "resnet")
    speeds = {network.key: speed.Speed(train=3 * rate, predict=rate, is_measured=True)}
    work, budget = Work(train=1_700, val=300, folds=1), Budget.of(600.0, 2)
    fit = fit_pretrained([network], [224, 128, 96, 64], speeds, work, budget, 6, native)
    assert fit is not None
    assert (fit.size, fit.tunes, fit.freezes_half) == (size, tuned is not None, tuned == "half")
    if tuned is not None:
        assert fit.epochs - fit.head_epochs >= (HALF if fit.freezes_half else WHOLE).fewest_epochs
        # All trainings of two workers fit into the time of the search.
        trials = 2 if rate == 7e-11 else 4
        search = Budget.of(600.0, 2, fit.search_share).search
        assert trials * (fit.epochs - fit.head_epochs) * fit.epoch_seconds <= 2 * search


@pytest.mark.parametrize(("rate", "max_train"), [(2e-9, 1_200), (8e-9, 75), (1e-8, None)])
def test_slowest_machines_train_heads_on_few_images(rate: float, max_train: int | None) -> None:
    network = next(one for one in from_scratch(32, 3, 6) if one.name == "resnet")
    speeds = {network.key: speed.Speed(train=3 * rate, predict=rate, is_measured=True)}
    work, budget = Work(train=1_700, val=300, folds=1), Budget.of(600.0, 2)
    fit = fit_pretrained([network], [224, 128, 96], speeds, work, budget, 6)
    if max_train is None:
        # Not even those of the fewest images.
        assert fit is None
        return
    assert fit is not None
    assert (fit.size, fit.tunes) == (96, False)
    assert fit.max_train == max_train
    seconds = (fit.max_train + work.val) * network.macs(96, 3, 6) * rate
    assert seconds <= VIEWS_SHARE * budget.search


def test_imbalance_splits_and_flips_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uneven = pictures(tmp_path / "uneven", {"a": 40, "b": 8})
    found = drafted(uneven, 60.0, flips="horizontal", monkeypatch=monkeypatch)
    values = {one.path: one.value for one in found.decisions}
    assert values["study.objectives"] == {"macro_f1": "maximize"}
    assert values["loss"]["cross_entropy"]["class_weights"] == {"choice": ["none", "balanced"]}
    assert values["data.folder.folds"] == 5
    assert values["augment.flip"] == "horizontal"
    assert values["image.size"] == [32, 48]
    even = pictures(tmp_path / "even", {"a": 400, "b": 400}, (8, 8))
    found = drafted(even, 600.0, monkeypatch=monkeypatch)
    values = {one.path: one.value for one in found.decisions}
    assert values["study.objectives"] == {"accuracy": "maximize"}
    assert "class_weights" not in values["loss"]["cross_entropy"]
    assert values["data.folder.val"] == 0.15
    assert values["augment.flip"] == "none"


def test_a_full_disk_and_little_memory_are_reckoned_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pictures(tmp_path / "photos", {"a": 300, "b": 300}, (64, 64))
    found = drafted(data, 600.0, machine="poor", monkeypatch=monkeypatch)
    values = {one.path: one.value for one in found.decisions}
    assert values["image.cache_gb"] == 0.0
    assert 1 <= values["study.workers"] <= 2


@pytest.mark.parametrize("seconds", [0.5, 6.0, 59.4, 119.0, 210.0, 599.0, 2520.0, 3600.0, 5400.0, 36_000.0, 900_000.0])
def test_the_time_in_the_file_is_the_time_in_its_comment(seconds: float) -> None:
    budget = Budget.of(seconds / 0.7, 1)
    written = rules._duration(budget.search)
    found = durations.parse(written)
    assert found is not None
    assert durations.show(found) == durations.show(budget.search)


def test_networks_of_one_family_stand_there_once() -> None:
    tree, kept = merged(of_weights(*RESNETS, LITE))
    assert tree["resnet"]["depth"] == {"choice": [18, 34]}
    assert len(kept) == 3
    other = {"timm": {"name": "resnet10t", "weights": "/w/b.pth"}}
    tree, kept = merged(of_weights({"timm": {"name": "x", "weights": "/w/a.pth"}}, other))
    assert tree == {"timm": {"name": "x", "weights": "/w/a.pth"}}
    assert len(kept) == 1


@pytest.mark.parametrize(
    ("size", "native"),
    [((112, 84), (84, 112)), ((300, 300), 224), ((1200, 900), (224, 304)), ((5, 5), 8), ((900, 50), 50)],
)
def test_an_oblong_size_is_kept(size: tuple[int, int], native: Any, tmp_path: Path) -> None:
    found = look(pictures(tmp_path, {"a": 3, "b": 3}, size))
    assert native_size(found) == native


def test_aspects_of_strips_are_plain_numbers(tmp_path: Path) -> None:
    for kind in ("a", "b"):
        for number in range(4):
            picture(tmp_path / kind / f"{number}.png", (1334, 2), number)
    said = "widths are 667 to 667 times the heights: borders keep the whole image"
    assert rules._fit(look(component(tmp_path)), (32, 32)) == ("pad", said)


def test_speed_is_measured_on_real_images_within_its_time(tmp_path: Path) -> None:
    data = pictures(tmp_path, {"a": 20, "b": 20}, (16, 16))
    networks = from_scratch(16, 3, 2)[:1]
    found = speed.measure(networks, [16], describe(data), MACHINES["cpu"], channels=3, seconds=PATIENCE, progress=quiet)
    assert found[networks[0].key].is_measured
    assert found[networks[0].key].train > found[networks[0].key].predict > 0
    # Each of the two processes has made all its passes, of which the fastest counts.
    assert found[networks[0].key].epochs == MACHINES["cpu"].workers * speed.MOST_PASSES
    none = speed.measure(networks, [16], describe(data), MACHINES["cpu"], channels=3, seconds=0.0, progress=quiet)
    assert none == {}


def test_passes_after_the_first_are_worth_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first pass sets up the network; a time that has only room for it gives a speed as well."""
    data = pictures(tmp_path, {"a": 20, "b": 20}, (16, 16))
    (job,) = speed._jobs(
        from_scratch(16, 3, 2)[:1], [16], describe(data), tmp_path.parent / f"{tmp_path.name}-cache", 3
    )
    seconds = iter([9.0, 3.0, *[1.0] * 20])

    def timed(action: Any) -> float:
        action()
        return next(seconds)

    monkeypatch.setattr(speed, "_seconds", timed)
    first, *_, last = speed._time(job, "cpu", math.inf)
    images, batch = len(describe(data).names["train"]), speed.BATCH
    assert (first.epochs, last.epochs) == (1, speed.MOST_PASSES)
    assert first.train * job.macs == pytest.approx(9.0 / batch)
    assert last.train * job.macs == pytest.approx(1.0 / images)
    seconds = iter([9.0, 3.0])
    assert [one.epochs for one in speed._time(job, "cpu", 0.0)] == [1]


def test_time_for_measuring_is_bounded() -> None:
    assert speed.time_allowed(10) == 0
    assert speed.time_allowed(600) <= 0.05 * 600
    assert speed.time_allowed(1e6) <= 60


# ---------------------------------------------------------------------------------------------- refusals


def test_a_study_is_no_folder_of_images(tmp_path: Path) -> None:
    (tmp_path / "studies/vit/checkpoints").mkdir(parents=True)
    (tmp_path / "studies/vit.db").touch()
    for folder, kind in (("studies/vit", "folder of study 'vit'"), ("studies", "folder of studies")):
        with pytest.raises(DataError, match=kind):
            drafts.draft(component(tmp_path / folder), seconds=60, root=tmp_path / "elsewhere")
    for folder in (tmp_path, Path("/")):
        with pytest.raises(UserError, match="would be taken for a class"):
            drafts.draft(component(folder), seconds=60, root=tmp_path / "studies")


def test_a_study_of_the_name_is_left_alone(tmp_path: Path) -> None:
    assert drafts.free_name("photos", tmp_path) == "photos"
    (tmp_path / "photos.db").touch()
    (tmp_path / "photos-2").mkdir()
    assert drafts.free_name("photos", tmp_path) == "photos-3"


def test_plan_takes_the_first_cut_that_there_is_time_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "time_allowed", lambda seconds: 0.0)
    data = pictures(tmp_path, {"a": 100, "b": 100}, (16, 16))
    cuts = possible_cuts(data, describe(data), look(data))
    assert [cut.key for cut in cuts] == ["folds", "val"]
    for seconds, wanted in ((0.5, "val"), (3600.0, "folds")):
        sources = [cut.source for cut in cuts]
        number, _ = make_plan(sources, look(data), MACHINES["cpu"], [], seconds=seconds, progress=quiet)
        assert cuts[number].key == wanted
