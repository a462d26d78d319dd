"""A whole study by the API: in a script without a guard, in a thread below a running loop, twice, interrupted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import imgcls_search as ic
import numpy as np
import pytest
from PIL import Image

from tests.conftest import PATIENCE, Answer, linux_only
from tests.warm import Warm

SPACE = """
SPACE = {
    "study": {"trials": 3, "pruner": "none", "pictures": False, "learn_from": "none"},
    "data": {"digits": {"max_train": 200}},
    "model": {"lenet5": {"width": {"choice": [0.5, 1]}, "activation": {"choice": ["relu", "tanh"]}}},
    "optimizer": {"adamw": {"lr": {"float": [1e-3, 1e-2], "log": True}}},
    "training": {"epochs": 2, "batch_size": 50},
}
"""

# No `if __name__ == "__main__"`: processes that ran the script again would write the line twice, and start searches.
WHOLE = f"""
import asyncio, json, logging, signal, sys, threading
import imgcls_search as ic
{SPACE}
open("begun", "a").write("once\\n")
lines = []
class Keep(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())
logging.getLogger("imgcls_search").addHandler(Keep())
logging.getLogger("imgcls_search").setLevel(logging.INFO)
numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
before = [signal.getsignal(number) for number in numbers]
study = ic.run(SPACE, name="first", workers=1)
again = ic.run(SPACE, name="first", workers=1, changes={{"study.trials": 4}})
# Below a loop that runs, and in a thread that is not the main one.
async def below_a_loop():
    return ic.run(SPACE, name="second", workers=1)
second = asyncio.run(below_a_loop())
found = {{}}
thread = threading.Thread(target=lambda: found.update(third=ic.run(SPACE, name="third", workers=1)))
thread.start()
thread.join()
import torch, random
torch.manual_seed(3)
state, drawn, threads = torch.get_rng_state(), random.getstate(), torch.get_num_threads()
confirmed = study.confirm(top=1, seeds=2)
page = study.report("report.html")
study.export("model")
study.export("best.yaml")
trained = ic.train(study.best, out="final", changes={{"training.epochs": 1}})
measured = ic.evaluate("final/seed-1.pt", split="val")
assert torch.equal(state, torch.get_rng_state()) and drawn == random.getstate()
assert threads == torch.get_num_threads()
assert before == [signal.getsignal(number) for number in numbers]
print(json.dumps({{
    "trials": [s.status["trials"]["complete"] for s in (study, second, found["third"])],
    "best": [study.best.number, again.best.number],
    "scores": [[t.value for t in (s.trial(0), s.trial(1), s.trial(2))] for s in (study, second, found["third"])],
    "confirmed": confirmed["chosen"],
    "metrics": measured["metrics"],
    "seeds": trained["seeds"],
    "said": lines,
    "openings": len(study.status["test_openings"]),
}}))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, warm: Warm | None) -> Iterator[tuple[Path, dict[str, Any], str]]:
    """Yield a folder with studies, a report and a model, what the script printed, and its standard error."""
    import os
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("api")
    script = folder / "script.py"
    script.write_text(WHOLE)
    if warm is not None:
        process: Any = warm.start([], folder, os.environ, script)
    else:
        pipe = subprocess.PIPE
        process = subprocess.Popen([sys.executable, script.name], cwd=folder, stdout=pipe, stderr=pipe, text=True)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.wait() == 0, err
    yield folder, json.loads(out), err
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def study(made: tuple[Path, dict[str, Any], str], monkeypatch: pytest.MonkeyPatch) -> ic.Study:
    monkeypatch.chdir(made[0])
    return ic.open_study("first")


def test_a_script_without_a_guard_runs_once(made: tuple[Path, dict[str, Any], str]) -> None:
    folder, found, err = made
    assert (folder / "begun").read_text() == "once\n"
    assert found["trials"] == [4, 3, 3]
    # The seed decides, wherever it runs.
    assert found["scores"][0] == found["scores"][1] == found["scores"][2]
    # One line of JSON is all of its output: nothing is printed unless `progress` is set.
    assert err == ""
    assert any(line.startswith("study first in ") for line in found["said"])
    assert found["openings"] == 2


def test_a_study_is_what_the_commands_say(study: ic.Study, here: Callable[..., Answer]) -> None:
    # `here` works in a folder of its own: a study is found from there too.
    studies = ("--studies", str(study.files.root))
    best = json.loads(here("best", "first", *studies, "--json").out)
    assert study.best.number == best["best"][0]["trial"]
    assert dict(study.best.values) == best["best"][0]["values"]
    assert study.confirmed is not None
    assert study.confirmed["chosen"] == best["confirmed"]["chosen"] == study.best.number
    status = json.loads(here("status", "first", *studies, "--json").out)
    assert json.loads(json.dumps(study.status)) == status
    rows = json.loads(here("trials", "first", *studies, "--json").out)
    assert [study.trial(row["trial"]).values["accuracy"] for row in rows] == [row["values"]["accuracy"] for row in rows]


def test_trials_are_a_frame(study: ic.Study) -> None:
    pandas = pytest.importorskip("pandas")
    frame = study.trials()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns[:5]) == ["trial", "state", "family", "accuracy", "epochs"]
    assert {"params.model.lenet5.width", "params.optimizer.adamw.lr", "sizes.params"} <= set(frame.columns)
    assert frame["accuracy"].max() == study.best.value
    assert frame.loc[frame["accuracy"].idxmax(), "trial"] == study.best.number
    assert len(study.trials(top=2)) == 2
    assert list(study.best.curve()["epoch"]) == [1, 2]
    with pytest.raises(ic.UserError, match="no trial is of it"):
        study.trials(family="resnet")


def test_without_pandas_one_line_says_what_to_install(study: ic.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ic.UserError, match=r"needs pandas; pip install 'imgcls-search\[pandas\]'"):
        study.trials()


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_notebook_shows_study_trial_and_report_without_scripts(study: ic.Study) -> None:
    report = ic.Report(path=Path("report.html"), study="<script>alert(1)</script>")
    shown = {
        "study": study._repr_html_(),
        "trial": study.best._repr_html_(),
        "report": report._repr_html_(),
        "predictions": ic.load_model("model").predict(np.zeros((8, 8), np.uint8))._repr_html_(),
    }
    for name, text in shown.items():
        found = _Tags(text)
        names = {tag for tag, _ in found.tags}
        assert names <= {"div", "strong", "table", "thead", "tbody", "tr", "th", "td", "iframe"}, name
        assert not [key for _, attributes in found.tags for key in attributes if key.startswith("on")]
        # No colours of its own, so that a dark page stays readable.
        styles = " ".join(str(attributes.get("style", "")) for _, attributes in found.tags)
        assert "#" not in styles
        assert "white" not in styles
    (frame,) = [attributes for tag, attributes in _Tags(shown["report"]).tags if tag == "iframe"]
    assert frame["sandbox"] is None
    assert frame["srcdoc"] == report.html
    assert "<script>alert" not in shown["report"]
    assert "accuracy" in _Tags(shown["trial"]).text
    assert "first" in _Tags(shown["study"]).text


def test_a_model_predicts_what_the_command_predicts(
    made: tuple[Path, dict[str, Any], str], here: Callable[..., Answer]
) -> None:
    from sklearn.datasets import load_digits

    pixels = np.round(load_digits().images[:5] * (255 / 16)).astype(np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(f"digit-{number}.png")
    paths = [Path(f"digit-{number}.png") for number in range(5)]
    model = ic.load_model(made[0] / "model")
    assert model.classes == tuple("0123456789")
    answer = here("predict", made[0] / "model", *paths, "--top", "10", "--json")
    said = json.loads(answer.out)["predictions"]
    found = model.predict(paths)
    assert list(found.labels) == [each["classes"][0]["label"] for each in said]
    rows = [{entry["label"]: entry["probability"] for entry in each["classes"]} for each in said]
    np.testing.assert_array_equal(found.probabilities, [[row[name] for name in model.classes] for row in rows])
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1)
    # The same pixels in memory, in every form.
    for images in (pixels, list(pixels), [Image.fromarray(image) for image in pixels], iter(paths)):
        np.testing.assert_array_equal(model.predict(images).probabilities, found.probabilities)
    colour = np.repeat(pixels[..., None], 3, axis=3)
    assert model.predict(colour).labels == found.labels
    one = model.predict(pixels[0])
    assert (one.images, one.labels) == (("image 0",), found.labels[:1])
    frame = found.frame()
    assert list(frame["label"]) == list(found.labels)
    assert frame["probability"].tolist() == pytest.approx(found.probabilities.max(axis=1).tolist())


def test_images_that_cannot_be_read_are_named(study: ic.Study) -> None:
    Path("broken.png").write_bytes(b"no image")
    Path("empty").mkdir(exist_ok=True)
    model = ic.load_model("model")
    found = model.predict(["broken.png", np.zeros((8, 8), np.uint8)])
    assert found.labels[0] is None
    assert np.isnan(found.probabilities[0]).all()
    assert list(found.skipped) == ["broken.png"]
    for images in ("broken.png", "empty", "nowhere.png"):
        with pytest.raises(ic.NoResultError, match="no image could be read"):
            model.predict(images)
    for wrong, said in (
        ([], "there is none"),
        (3, "got a int"),
        ([3], "image 0 is a int"),
        (np.zeros((8, 8)), "array of float64"),
        (np.zeros((0, 8, 8, 3), np.uint8), "there is none"),
        ({"a": 1}, "got a dict"),
    ):
        with pytest.raises(ic.UserError, match=said):
            model.predict(wrong)
    with pytest.raises(ic.UserError, match="tta: 'flip'"):
        model.predict(np.zeros((8, 8), np.uint8), tta="flip")  # type: ignore[arg-type]
    with pytest.raises(ic.UserError, match="from 0 to 1"):
        model.predict(np.zeros((8, 8), np.uint8), min_confidence=2)


def test_files_that_were_written_are_those_of_the_commands(
    made: tuple[Path, dict[str, Any], str], study: ic.Study, here: Callable[..., Answer]
) -> None:
    folder = made[0]
    studies = ("--studies", str(study.files.root))
    assert here("export", "first", "-o", "same.yaml", *studies).code == 0
    assert (Path.cwd() / "same.yaml").read_text() == (folder / "best.yaml").read_text()
    assert ic.check(folder / "best.yaml", samples=0)["is_config"]
    for path in (folder / "model", folder / "final" / "seed-1.pt"):
        assert path.exists()
    with pytest.raises(ic.UserError, match="exists already"):
        study.export(folder / "model")
    with pytest.raises(ic.UserError, match="need a folder"):
        study.export("x.yaml", tta="mirror")
    with pytest.raises(ic.UserError, match="need a folder"):
        study.export("x.yaml", format="openvino")
    with pytest.raises(ic.UserError, match="format: 'torch' is not allowed; allowed: onnx, openvino, executorch"):
        study.export("x", format="torch")
    with pytest.raises(ic.StudyError, match="has no trial 99"):
        study.export("x.yaml", trial=99)
    with pytest.raises(ic.UserError, match="seeds: 1 is not allowed"):
        study.confirm(seeds=1)


def test_a_study_whose_database_is_gone_or_damaged_is_one_line(
    made: tuple[Path, dict[str, Any], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made[0] / "studies", tmp_path / "studies")
    study = ic.open_study("second")
    (tmp_path / "studies" / "second.db").write_bytes(b"no database" * 1000)
    with pytest.raises(ic.StudyError):
        study.best  # noqa: B018
    (tmp_path / "studies" / "second.db").unlink()
    with pytest.raises(ic.StudyError, match="no such study"):
        study.trials()
    problems = {entry["study"]: entry.get("problem") for entry in ic.studies()}
    assert problems["first"] is None


INTERRUPTED = f"""
import json, os, signal, threading, time
import imgcls_search as ic
{SPACE}
SPACE["training"]["epochs"] = 40
SPACE["study"]["trials"] = 1
handler = signal.getsignal(signal.SIGINT)
def when_it_trains():
    for _ in range(6000):
        time.sleep(0.1)
        try:
            if ic.open_study("space-digits").status["epochs"] >= 2:
                break
        except ic.SearchError:
            pass
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=when_it_trains).start()
try:
    ic.run(SPACE, workers=1)
    raise SystemExit("it was not interrupted")
except KeyboardInterrupt as stop:
    said = str(stop)
study = ic.open_study("space-digits")
state, epochs = study.status["state"], study.status["epochs"]
assert signal.getsignal(signal.SIGINT) is handler
study = ic.run(SPACE, workers=1)
print(json.dumps([said, state, epochs, len(study.best.history), study.status["runs"][0]["ending"]]))
"""


@linux_only
def test_ctrl_c_saves_and_the_same_call_resumes(run_script: Callable[..., Answer], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + INTERRUPTED)
    answer = run_script(script, cwd=tmp_path)
    assert answer.code == 0, answer.err
    said, state, epochs, after, ending = json.loads(answer.out)
    assert "saved" in said
    assert (state, ending) == ("interrupted", "interrupted")
    assert 2 <= epochs < after == 40


OWN = f"""
import json, logging, pathlib
import imgcls_search as ic
{SPACE}
lines = []
class Keep(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())
logging.getLogger("imgcls_search").addHandler(Keep())
logging.getLogger("imgcls_search").setLevel(logging.INFO)
ic.add_code("code")
SPACE["study"] |= {{"trials": 1, "objectives": {{"own_parts:distance": "minimize"}}}}
SPACE["model"] = {{"custom": {{"function": "own_parts:net", "width": {{"choice": [8, 16]}}}}}}
SPACE["data"] = {{"custom": {{"function": "own_parts:even"}}}}
study = ic.run(SPACE, name="own", workers=1)
first = dict(study._record().facts["code"])
file = pathlib.Path("code/own_parts.py")
file.write_text(file.read_text().replace("abs(", "2 * abs("))
ic.run(SPACE, name="own", workers=1, changes={{"study.trials": 2}})
facts = study._record().facts["code"]
print(json.dumps([first, facts, lines, study.trial(0).value, study.trial(1).value]))
"""

PARTS = """
def net(*, image_size, channels, classes, width=8):
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, width), nn.ReLU(), nn.Linear(width, classes))


def distance(probabilities, labels):
    return abs(probabilities.argmax(axis=1) - labels).mean()


def even():
    import numpy as np
    from sklearn.datasets import load_digits

    found = load_digits()
    kept = found.target % 2 == 0
    return {"images": np.round(found.images[kept] * 15).astype(np.uint8), "labels": found.target[kept]}
"""


def test_functions_of_ones_own_work_in_the_workers_and_their_changes_are_said(
    run_script: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own_parts.py").write_text(PARTS)
    script = tmp_path / "script.py"
    script.write_text(OWN)
    answer = run_script(script, cwd=tmp_path)
    assert answer.code == 0, answer.err
    first, then, lines, _, _ = json.loads(answer.out)
    assert set(first) == {"own_parts:net", "own_parts:distance", "own_parts:even"}
    for name, fact in first.items():
        assert len(fact["sha256"]) == 64
        assert fact["changed"] == []
        assert then[name]["sha256"] == fact["sha256"]
        assert len(then[name]["changed"]) == 1
    said = [line for line in lines if "its source has changed" in line]
    assert [line.partition(": ")[0] for line in said] == list(first)


def test_a_command_takes_functions_from_the_folders_of_the_environment(
    imgcls: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own_parts.py").write_text(PARTS)
    (tmp_path / "own_parts.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "space.yaml").write_text(
        "data: digits\nmodel: {custom: {function: 'own_parts:net', width: {int: [4, 8]}}}\n"
    )
    refused = imgcls("check", "space.yaml", "--samples", "3")
    assert refused.code == 2
    assert refused.err.startswith("error: space.yaml:2:18: model.custom.function: own_parts:net: no module 'own_parts'")
    assert len(refused.err.splitlines()) == 1
    answer = imgcls("check", "space.yaml", "--samples", "3", "--json", env={"IMGCLS_CODE": "code"})
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["survey"]["fit"] == 3
