"""The dashboard and the report in a real browser: what is on the screen, and what must not happen there."""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imgcls_search.config import Component
from imgcls_search.jobs.inspect.inspection import Wanted, inspect_images, take_inventory
from imgcls_search.study import best
from imgcls_search.study import record as records
from imgcls_search.study.files import StudyFiles
from imgcls_search.study.record import Record
from imgcls_search.views.inspection import write_page
from imgcls_search.views.report import write_report
from imgcls_search.worker import drawing, figures, pictures
from PIL import Image

from scripts.bench import simulation
from tests.jobs.test_inspect import photo, plant
from tests.views.test_dashboard import SPACE, TWO, serving, study_with

pytestmark = pytest.mark.slow

MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script>"
NARROW, WIDE = {"width": 360, "height": 740}, {"width": 1200, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Yield one browser for all pages."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed; scripts/test --all installs it where it can")
    with sync_api.sync_playwright() as playwright:
        # The sandbox does not start for root, and these pages are our own.
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@dataclass
class Seen:
    """A page and what it did."""

    page: Any
    requests: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    """Errors on the console, exceptions, dialogs."""


@pytest.fixture
def look(browser: Any) -> Iterator[Callable[..., Seen]]:
    """Open a page and write down what it asks the network for and what goes wrong."""
    contexts = []

    def opened(address: str, **settings: Any) -> Seen:
        contexts.append(browser.new_context(**{"viewport": WIDE, **settings}))
        page = contexts[-1].new_page()
        seen = Seen(page)
        page.on("request", lambda request: seen.requests.append(request.url))
        page.on("pageerror", lambda error: seen.troubles.append(str(error)))
        page.on("console", lambda line: seen.troubles.append(line.text) if line.type == "error" else None)

        def refuse(dialog: Any) -> None:
            seen.troubles.append(f"dialog {dialog.message}")
            dialog.dismiss()

        page.on("dialog", refuse)
        page.goto(address)
        return seen

    yield opened
    for context in contexts:
        context.close()


def full_study(files: StudyFiles, count: int, objectives: Sequence[tuple[str, str]] = TWO[:1]) -> Record:
    """Make a study of complete trials that came to their end."""
    values = [(trial.values or (0.0,))[0] for trial in simulation.make_trials(SPACE, count)]
    ends = [((value, 1 + value)[: len(objectives)], 0.0) for value in values]
    record = study_with(files, objectives, ends)
    data = {"images": {"train": 800, "val": 200}, "classes": [MARKUP, "dog"], "fingerprint": "0123"}
    record.set_fact("data", data)
    record.set_fact("versions", {"torch": MARKUP})
    return record


def test_dashboard_shows_our_best_and_markup_as_text(look: Callable[..., Seen], tmp_path: Path) -> None:
    files = StudyFiles(tmp_path, "s")
    record = study_with(files, TWO[:1], [([0.5], 0.0), ([0.8125], -1.0), ([0.9], 0.1)])
    trial = simulation.make_trials(SPACE, 4)[3]
    trial.epochs, trial.state, trial.values = [], "running", None
    record.add(trial)
    record.note(trial, **{MARKUP: MARKUP})
    drawn = simulation.make_trials(SPACE, 5)[4]
    history, drawn.epochs, drawn.state, drawn.values = drawn.epochs, [], "running", None
    record.add(drawn)
    pixels, labels = np.zeros((3, 1, 8, 8), np.uint8), np.array([0, 1, 1])
    drawn.pictures = pictures.draw(
        files.pictures,
        4,
        history=history,
        logits=np.eye(2)[[0, 1, 0]],
        labels=labels,
        pixels=pixels,
        classes=[MARKUP, "$x$"],
    )
    record.complete(drawn, [0.25])
    record.set_fact(MARKUP, MARKUP)
    from optuna_dashboard import save_note

    save_note(record.study, f"# What was searched\n\n{MARKUP}\n")
    (winner,) = best.front(record)
    with serving(files) as port:
        seen = look(f"http://127.0.0.1:{port}/dashboard/studies/1")
        seen.page.get_by_text(f"Best Trial (number={winner.number})").wait_for()
        assert winner.values == (0.8125,)
        text = seen.page.inner_text("body")
        assert "0.8125" in text
        assert text.count("Best Trial (") == 1
        # What is over the limit stands in the legend of the plot.
        assert "Infeasible" in text
        assert MARKUP in text
        seen.page.goto(f"http://127.0.0.1:{port}/dashboard/studies/1/trials?numbers=3")
        seen.page.get_by_text("onerror").first.wait_for()
        assert MARKUP in seen.page.inner_text("body")
        seen.page.goto(f"http://127.0.0.1:{port}/dashboard/studies/1/trials?numbers=4")
        seen.page.get_by_text("confusion-matrix.png").first.wait_for()
        shown = (
            "() => [...document.images].filter(i => i.src.includes('/artifacts/') && i.naturalWidth > 100).length == 3"
        )
        seen.page.wait_for_function(shown)
        seen.page.goto(f"http://127.0.0.1:{port}/dashboard/studies/1/note")
        seen.page.get_by_text("What was searched").wait_for()
        assert seen.page.locator("img[src=x]").count() == 0
    assert [trouble for trouble in seen.troubles if "dialog" in trouble or "alert" in trouble] == []
    assert all(url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:")) for url in seen.requests)


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path]:
    """Return a study of 1,000 trials, and its report."""
    folder = tmp_path_factory.mktemp("big")
    record = simulation.new_record(folder, SPACE, "s")
    simulation.fill(
        record.rows,  # type: ignore[arg-type]
        record.study,
        simulation.make_trials(SPACE, 1000),
        simulation.attributes_like_the_record(folder, SPACE),
    )
    record.set_fact("data", {"images": {"train": 800, "val": 200}, "classes": [MARKUP, "dog"], "fingerprint": MARKUP})
    record.set_fact("versions", {MARKUP: MARKUP})
    files = StudyFiles(folder, "s")
    assert write_report(files, folder / "report.html") < 3_000_000
    return records.load(files), folder / "report.html"


def test_report_of_1000_trials_needs_no_network_and_tells_what_the_database_holds(
    look: Callable[..., Seen], big: tuple[Record, Path]
) -> None:
    record, path = big
    seen = look(path.as_uri())
    winner = best.front(record)[0]
    shown = functools.partial(seen.page.inner_text)
    assert int(shown("#best-trial")) == winner.number
    # On 200 images there is no fourth decimal.
    assert shown("#best-accuracy") == f"{(winner.values or ())[0]:.3f}"
    assert shown("#best-params") == f"{winner.sizes['params']:,.0f}"
    assert shown("#num-complete") == "1000"
    rows = [
        int(cell) for cell in seen.page.locator("h2:text('The best trials') + div td:first-child").all_inner_texts()
    ]
    assert rows == [trial.number for trial in best.ranked(record)[:20]]
    # Markup is text, and there is no script at all.
    assert MARKUP in shown("body")
    assert seen.page.locator("script, img[src=x]").count() == 0
    assert seen.requests == [path.as_uri()]
    assert seen.troubles == []


def test_report_is_readable_on_a_phone_in_the_dark_and_on_paper(
    look: Callable[..., Seen], big: tuple[Record, Path]
) -> None:
    _, path = big
    page = look(path.as_uri(), viewport=NARROW, color_scheme="dark").page
    widths = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    scroll, client = page.evaluate(widths)
    assert scroll <= client == NARROW["width"]
    colours = "(e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color])(document.body)"
    back, ink = page.evaluate(colours)
    assert brightness(back) < 60 < 180 < brightness(ink)
    # The text of the pictures has the page's colour.
    labels = page.evaluate("getComputedStyle(document.querySelector('svg.plot text')).fill")
    assert brightness(labels) > 180
    page.emulate_media(media="print")
    back, ink = page.evaluate(colours)
    assert brightness(back) > 240 > 60 > brightness(ink)
    assert page.pdf(format="A4").startswith(b"%PDF")


CLASHES = """svg => {
    // Upright and level texts fill their boxes, and others there are none.
    const seen = [...svg.querySelectorAll('text')].filter(e => e.textContent.trim() && e.getBoundingClientRect().width);
    const frame = svg.getBoundingClientRect(), found = [];
    seen.forEach((a, i) => {
        const p = a.getBoundingClientRect(), shown = a.textContent.trim();
        const far = Math.max(frame.left - p.left, p.right - frame.right, frame.top - p.top, p.bottom - frame.bottom);
        if (far > 1)
            found.push(`${shown} is cut off`);
        for (const b of seen.slice(i + 1)) {
            const q = b.getBoundingClientRect();
            if (Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1
                && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 3)
                found.push(`${shown} on ${b.textContent.trim()}`);
        }
    });
    return found;
}"""
"""Returns the texts of a picture that cover each other or leave it."""

SIZES_OF_TEXT = """svg => [...svg.querySelectorAll('text')].filter(e => e.textContent.trim()).map(e =>
    parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a || Math.hypot(e.getScreenCTM().a, e.getScreenCTM().b)
    * parseFloat(getComputedStyle(e).fontSize))"""
"""Returns the heights of the texts of a picture on the screen."""

OVERLAPS = """() => {
    const parts = [...document.querySelectorAll('h1, h2, h3, p, li, .card, figure, table, pre')], found = [];
    const frames = parts.map(e => e.getBoundingClientRect());
    parts.forEach((a, i) => parts.slice(i + 1).forEach((b, j) => {
        const p = frames[i], q = frames[i + 1 + j];
        if (!a.contains(b) && !b.contains(a) && !a.closest('.scroll') && !b.closest('.scroll')
            && Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1
            && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 1)
            found.push(`${a.innerText.slice(0, 40)} on ${b.innerText.slice(0, 40)}`);
    }));
    return found;
}"""
"""Returns the parts of a page that cover each other."""


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of a study of two objectives with a crowded front, importances and a way to the winner."""
    folder = tmp_path_factory.mktemp("rich")
    made = simulation.make_trials(SPACE, 60)
    rates = [np.log10(float(trial.candidate.params["optimizer.adamw.lr"])) for trial in made]
    values = [(0.9 - 0.2 * (rate + 3) ** 2, 10 ** (rate + 4 + number / 90)) for number, rate in enumerate(rates)]
    record = study_with(StudyFiles(folder, "s"), TWO, [(each, 0.0) for each in values])
    record.set_fact("data", {"images": {"train": 800, "val": 200}, "classes": ["cat", "dog"], "fingerprint": "0"})
    spread = {"scores": [0.8, 0.85, 0.9], "mean": 0.85, "std": 0.05, "ci95": 0.12}
    steps = [{"changes": [f"training.batch_size: was {step}, is now {step + 1}"], **spread} for step in range(5)]
    number = best.front(record)[0].number
    ablation = {"metric": "accuracy", "first": 0, "winner": number, "seeds": [1, 2, 3], "steps": steps}
    record.set_fact("ablation", {"at": "2026-11-29T10:00:00+00:00", "direction": "maximize", **ablation})
    write_report(StudyFiles(folder, "s"), folder / "report.html")
    return folder / "report.html"


@pytest.mark.parametrize("width", [400, 1600])
def test_texts_of_a_report_are_large_enough_and_cover_nothing(
    look: Callable[..., Seen], rich: Path, big: tuple[Record, Path], width: int
) -> None:
    for path in (rich, big[1]):
        page = look(path.as_uri(), viewport={"width": width, "height": 900}).page
        scroll, client = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert scroll <= client == width
        plots = page.query_selector_all("svg.plot")
        assert len(plots) >= 5
        assert [found for plot in plots if (found := plot.evaluate(CLASHES))] == []
        sizes = [size for plot in plots for size in plot.evaluate(SIZES_OF_TEXT)]
        assert min(sizes) >= 8.5
        assert max(sizes) <= 22
        assert page.evaluate(OVERLAPS) == []


def test_report_on_paper_has_whole_pictures_in_black(look: Callable[..., Seen], rich: Path) -> None:
    page = look(rich.as_uri(), viewport={"width": 720, "height": 1000}, color_scheme="dark").page
    page.emulate_media(media="print", color_scheme="dark")
    # Nothing can be scrolled on paper.
    cut = "[...document.querySelectorAll('svg.plot')].filter(e => e.getBoundingClientRect().right > innerWidth).length"
    assert page.evaluate(cut) == 0
    inks = page.evaluate("[...document.querySelectorAll('svg.plot text')].map(e => getComputedStyle(e).fill)")
    assert len(inks) > 50
    assert max(map(brightness, inks)) < 60
    assert page.evaluate(OVERLAPS) == []
    plots = page.query_selector_all("svg.plot")
    assert [found for plot in plots if (found := plot.evaluate(CLASHES))] == []


@pytest.mark.parametrize("count", [2, 6, 24, 60, 200])
def test_confusion_can_be_read_from_2_to_200_classes(look: Callable[..., Seen], count: int, tmp_path: Path) -> None:
    matrix = np.diag(np.full(count, 50))
    matrix[0, 1] = 14
    matrix[count - 1, 0] = 9
    names = [f"species {number}" for number in range(count)]
    drawn = pictures.confusions(matrix, names)
    assert len(drawn) == (1 if count <= 24 else 2)
    path = tmp_path / "picture.html"
    style = "<style>.drawn{overflow-x:auto}svg{width:100%;height:auto;font-family:sans-serif}</style>"
    svgs = "".join(f'<div class="drawn">{drawing.to_svg(figure, f"c{n}")}</div>' for n, figure in enumerate(drawn))
    path.write_text(f"<!doctype html>{style}{svgs}")
    for width in (400, 800):
        page = look(path.as_uri(), viewport={"width": width, "height": 900}).page
        plot = page.query_selector("svg.plot")
        assert plot.evaluate(CLASHES) == []
        assert min(plot.evaluate(SIZES_OF_TEXT)) >= 7
        texts = plot.evaluate("svg => [...svg.querySelectorAll('text')].map(e => e.textContent)")
        assert {"14", "9", "species 0", "species 1", f"species {count - 1}"} <= set(texts)


def brightness(colour: str) -> float:
    """Return the mean of a colour's red, green and blue."""
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


def test_report_shows_the_front(look: Callable[..., Seen], tmp_path: Path) -> None:
    files = StudyFiles(tmp_path, "s")
    record = full_study(files, 12, TWO)
    write_report(files, tmp_path / "report.html")
    seen = look((tmp_path / "report.html").as_uri())
    front = best.front(record)
    assert len(front) > 1
    caption = seen.page.inner_text("h2:text('Pareto front') + div figcaption")
    assert f"this page is about trial {front[0].number}" in caption
    assert seen.troubles == []
    # The study's folder holds no weights, as after a move: the page says so in a line.
    (line,) = seen.page.locator("h2:text('What the best one gets wrong') + .warn").all_inner_texts()
    assert line.startswith(f"The weights of trial {front[0].number} could not be looked at: ")
    assert "\n" not in line


def test_names_in_pictures_are_text(look: Callable[..., Seen], tmp_path: Path) -> None:
    names = ["<b>x</b>", "$\\frac$", "&amp;", "a$b$"]
    path = tmp_path / "picture.html"
    path.write_text(drawing.to_svg(figures.confusion(np.eye(4, dtype=int), names), "c"))
    seen = look(path.as_uri())
    texts = seen.page.locator("svg text").all_text_contents()
    assert [text for text in texts if text in names] == names * 2
    assert seen.page.locator("b").count() == 0
    assert seen.troubles == []


def test_axes_and_names_in_pictures_are_shown_as_they_are_meant(look: Callable[..., Seen], tmp_path: Path) -> None:
    scores = [0.5, 0.6, 0.7]
    drawn = {
        "a": figures.scatter({"vit": ([1e-4, 1e-2, 1.0], scores)}, "latency", "accuracy", log=True),
        "b": figures.slices({"optim.lr": figures.Slice([1e-4, 1e-2, 1.0], scores, True)}, "accuracy"),
        "c": figures.confusion(np.eye(2, dtype=int), ["\U000f1234", "dog"]),
    }
    path = tmp_path / "pictures.html"
    path.write_text("".join(drawing.to_svg(figure, name) for name, figure in drawn.items()))
    seen = look(path.as_uri())
    texts = seen.page.locator("svg text").all_text_contents()
    assert texts.count("0.01") == 2
    assert texts.count("\\U000f1234") == 2
    assert not [text for text in texts if "$" in text or "mathdefault" in text]
    assert seen.troubles == []


def test_report_of_several_objectives_is_whole_and_without_needless_digits(
    look: Callable[..., Seen], tmp_path: Path
) -> None:
    files = StudyFiles(tmp_path, "s")
    objectives = (("accuracy", "maximize"), ("params", "minimize"))
    values = [(0.361111, 19_822.0), (0.222222, 5_198.0), (0.305556, 328_766.0), (0.277778, 20_996.0)]
    record = study_with(files, objectives, [(each, 0.0) for each in values])
    names = ["纸", "玻璃 🍾", "プラスチック", "Karton ünd"]
    record.set_fact("data", {"images": {"train": 204, "val": 36, "test": 60}, "classes": names, "fingerprint": "2-e7"})
    spread = {"mean": 0.3611, "ci95": 0.7123, "std": 0.0786, "scores": [0.3055555, 0.4166666]}
    confirmed = {
        "at": "2026-11-29T10:00:00+00:00",
        "metric": "accuracy",
        "chosen": 0,
        "seeds": {"choosing": [1, 2], "fresh": [3, 4]},
        "ranking": [{"trial": 0, "searched": 0.361111, "is_tied": False, **spread}],
        "scores": spread["scores"],
        "confirmed": {name: spread[name] for name in ("mean", "ci95", "std")},
        "searched": 0.361111,
        "optimism": {"mean": 0.000011, "ci95": 0.7123},
        "test": {**spread, "images": 60},
    }
    record.set_fact("confirmed", confirmed)
    change = "optimizer.adamw.lr: was 0.001, is now 0.006605128001842014"
    steps = [{"changes": [], **spread}, {"changes": [change, "model.lenet5: was not there, is now {}"], **spread}]
    ablation = {"metric": "accuracy", "first": 1, "winner": 0, "seeds": [5, 6], "steps": steps}
    record.set_fact("ablation", {"at": "2026-11-29T10:00:00+00:00", "direction": "maximize", **ablation})
    write_report(files, tmp_path / "report.html")
    seen = look((tmp_path / "report.html").as_uri())
    page, body = seen.page, seen.page.inner_text("body")
    # Two seeds are two values.
    assert "±" not in body
    assert "reached accuracy 0.31 and 0.42 on 2 new seeds" in body
    assert "Optimism of its search score: +0.06 and -0.06" in body
    assert page.inner_text("#confirmed-test") == "0.31 and 0.42"
    assert page.inner_text("#best-accuracy") == "0.36"
    assert "lr: was 0.001, is now 0.006605" in body
    assert not re.search(r"\d\.\d{7,}", body.split("How to reproduce it")[0])
    # What is known beforehand is not of the validation split, and is said once.
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    texts = page.locator("svg text").all_text_contents()
    # Parameters that differ by decades have a logarithmic axis.
    assert {"10k", "100k"} <= set(texts)
    assert not [text for text in texts if re.search(r"(?<![\d.])\d{6}|e\+|mathdefault|\$", text)]
    assert any(text.startswith(("seconds of training", "minutes of training")) for text in texts)
    assert "by fANOVA" in body or "No importances" in body
    # No heading and no number is broken into lines.
    broken = """[...document.querySelectorAll('th, td.few')].filter(e => {
        const range = document.createRange(); range.selectNodeContents(e);
        return new Set([...range.getClientRects()].map(box => Math.round(box.top))).size > 1
    }).map(e => e.innerText)"""
    assert page.evaluate(broken) == []
    assert seen.troubles == []


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of an inspection of a folder whose names are markup, with copies and wrong labels."""
    top = tmp_path_factory.mktemp("inspected")
    plant(top / "photos", 20)
    label = "<b onclick=alert(3)>elm"
    for number in range(8):
        photo(top / "photos" / label / f"{MARKUP[:20].replace('/', '')}{number}.png", 300 + number, size=(300, 40))
    photo(top / "photos" / "oak" / "a-name-of-one-very-long-word-that-has-no-place-to-break-anywhere.png", 1)
    Image.open(top / "photos" / "ash" / "02.png").save(top / "photos" / label / "same.bmp")
    images = take_inventory(Component(path="data.folder", name="folder", args={"root": str(top / "photos")}))
    found = inspect_images(images, Wanted(epochs=1, models=("trees",), with_test=True), lambda what, done, total: None)
    assert found.judgement is not None
    assert found.judgement.suspects
    write_page(found, top / "inspect.html")
    return top / "inspect.html"


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_inspection_is_readable_without_network_or_script(
    look: Callable[..., Seen], inspected: Path, width: int, scheme: str
) -> None:
    seen = look(inspected.as_uri(), viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = seen.page
    scroll, client = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert scroll <= client == width
    back, ink = page.evaluate("(e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color])(document.body)")
    assert (brightness(back) < 60 < 180 < brightness(ink)) if scheme == "dark" else brightness(back) > 240 > 60
    body = page.inner_text("body")
    assert "<b onclick=alert(3)>elm" in body
    assert page.locator("script, b[onclick], img[src=x]").count() == 0
    # All pictures are there and can be seen; those of suspects say what they are given as and what they likely are.
    page.evaluate("[...document.images].forEach(i => i.loading = 'eager')")
    page.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth > 10)")
    first = page.locator("#suspects figcaption").first.inner_text()
    assert re.search(r"given .+\nlikely .+, \d+ %\n.+", first)
    assert page.locator(".set img").count() >= 2
    assert page.locator("#classes tr").count() == 4
    assert page.locator(".histogram rect").count() == 24
    assert page.locator(".histogram").bounding_box()["height"] > 100
    assert seen.requests == [inspected.as_uri()]
    assert seen.troubles == []
