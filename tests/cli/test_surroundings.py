"""What surrounds a command: streams, signals, folders and variables that may be there or not."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imgcls_search.cli.output import print_table
from imgcls_search.config import Component, expand_path
from imgcls_search.data import must_be_apart
from imgcls_search.errors import UserError
from PIL import Image

from tests.conftest import PATIENCE, TINY, Answer, is_one_line, linux_only
from tests.gate import Gate
from tests.orchestrator.test_run import children, is_alive, table, wait_for_epochs

PACKAGE = str(Path(__file__).parents[2] / "search")
COMMAND = f"{shlex.quote(sys.executable)} -m imgcls_search"


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of the shell in which `imgcls-search` is the command."""
    env = {**os.environ, "PYTHONPATH": PACKAGE, **environment}
    line = line.replace("imgcls-search", COMMAND)
    return subprocess.run(["bash", "-c", line], cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE)


@linux_only
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(closed: str, tmp_path: Path) -> None:
    done = shell(f"imgcls-search families vit {closed}; echo $? >code; imgcls-search status no {closed}", tmp_path)
    assert (tmp_path / "code").read_text() == "0\n"
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert ("num" in done.stdout or "depth" in done.stdout) == (">&-" not in closed.split())


@linux_only
@pytest.mark.slow
def test_search_with_closed_streams_writes_nothing_into_its_database(
    tiny: Path, tmp_path: Path, imgcls: Callable[..., Answer]
) -> None:
    one_by_one = ("--workers", "1", "--set", "study.trials=2")
    done = shell(f"imgcls-search run {tiny} {' '.join(one_by_one)} <&- >&- 2>&-", tmp_path)
    assert done.returncode == 0
    assert "2 trials (" in imgcls("status", "tiny-digits").out
    # Two interpreters hash strings differently: nothing in a study may come from the order of a set.
    assert imgcls("run", tiny, "--workers", "1").code == 0
    assert imgcls("run", tiny, "--workers", "1", "--studies", "of-one").code == 0
    assert table(tmp_path / "studies") == table(tmp_path / "of-one")


@linux_only
@pytest.mark.slow
def test_search_goes_on_when_nobody_reads_it(
    tiny: Path, start: Callable[..., Any], imgcls: Callable[..., Answer]
) -> None:
    process = start("run", tiny)
    first = process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert first.startswith("study tiny-digits")
    assert process.wait(PATIENCE) == 0
    assert err == "warning: standard output cannot be written (Broken pipe); continuing without it\n"
    found = imgcls("status", "tiny-digits", "--json").out
    assert '"running": 0' in found
    assert '"total": 4' in found


@linux_only
def test_command_that_only_prints_ends_with_its_reader(tmp_path: Path) -> None:
    line = "imgcls-search families > /dev/null; imgcls-search schema | head -1; echo ${PIPESTATUS[0]}"
    done = shell(line, tmp_path)
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""


@linux_only
def test_full_disk_behind_the_output_is_said(tmp_path: Path) -> None:
    done = shell("imgcls-search families > /dev/full", tmp_path)
    assert done.returncode == 2
    assert "error: standard output: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@linux_only
def test_deleted_working_folder_is_one_line(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    for command in ("run space.yaml", "status x", "check s.yaml", "list", "predict m i.png"):
        done = shell(f"mkdir {gone}; cd {gone}; rmdir {gone}; imgcls-search {command}", tmp_path)
        assert done.returncode == 2
        assert done.stderr == f"error: {gone}: this folder, in which the command was started, was deleted\n"
    assert shell(f"mkdir {gone}; cd {gone}; rmdir {gone}; imgcls-search --help", tmp_path).returncode == 0


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize("options", ["", "--cluster local"])
def test_long_folder_of_temporary_files_is_no_obstacle(
    tmp_path: Path, tiny: Path, imgcls: Callable[..., Answer], options: str
) -> None:
    if options:
        pytest.importorskip("ray")
    folder = tmp_path / ("long-" * 30)
    folder.mkdir()
    # What has the package in memory, and its answer to the question for a folder, is older than the variable.
    done = imgcls("run", tiny, *options.split(), env={"TMPDIR": str(folder)}, fresh=True)
    assert done.code == 0, done.err
    assert "finished: 4 trials" in done.out


@pytest.mark.slow
@linux_only
def test_hangup_saves_as_a_termination_does(start: Callable[..., Any], tiny: Path) -> None:
    gate = Gate(tiny.parent / "gate", epochs=3)
    process = start("run", tiny, *gate.options, "--workers", "1", env=gate.env)
    wait_for_epochs(process, 3, tiny.parent / "studies")
    process.send_signal(signal.SIGHUP)
    assert any("saving 1 running trial" in line for line in process.stdout)
    gate.open()
    out, err = process.communicate(timeout=PATIENCE)
    assert "run the same command again to resume" in out
    assert process.returncode == 143, err


@pytest.mark.slow
@linux_only
def test_interrupt_while_it_starts_shows_no_traceback(tmp_path: Path, tiny: Path) -> None:
    # Before its first line Python itself answers, also while it reads the file; what is swept is all that is done then.
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); import imgcls_search.__main__ as p; print(flush=True); p.main()"  # noqa: E501
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nif __name__ == '__main__':\n    {code}\n")
    for number in range(12):
        process = subprocess.Popen(
            [sys.executable, str(script), PACKAGE, "run", str(tiny), "--studies", f"s{number}"],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.02 + number * 0.08)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
        assert "Traceback" not in err, (number, err)
        assert "Exception ignored" not in err, (number, err)
        assert process.returncode == 130, (number, process.returncode, err)


@linux_only
@pytest.mark.parametrize("half_imported", ["multiprocessing.forkserver", "imgcls_search.executors.processes"])
def test_interrupt_amid_the_import_of_any_module_shows_no_traceback(half_imported: str) -> None:
    code = (
        "import os, signal, sys, types, imgcls_search.__main__ as program, imgcls_search.executors.processes\n"
        f"sys.modules[{half_imported!r}] = types.ModuleType('half')\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "program._leave_quietly_on_interrupt()\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": PACKAGE}, capture_output=True)
    assert (done.returncode, done.stderr) == (130, b"")


@linux_only
def test_interrupt_does_not_wait_for_libraries(tmp_path: Path, tiny: Path) -> None:
    # A torch that is imported for ever: it waits until somebody writes into a pipe.
    (tmp_path / "slow").mkdir()
    os.mkfifo(tmp_path / "pipe")
    begun = tmp_path / "begun"
    (tmp_path / "slow/torch.py").write_text(
        f"open({str(begun)!r}, 'w').close()\nopen({str(tmp_path / 'pipe')!r}).read()\nraise SystemExit\n"
    )
    # The processes hold what they print to as long as they live.
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "imgcls_search", "run", str(tiny)],
            cwd=tmp_path, stdout=out, stderr=out,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "slow"), PACKAGE])},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
    try:
        wait_for(begun.exists)
        importing = children(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        wait_for(lambda: not any(map(is_alive, importing)))
        assert "Traceback" not in (tmp_path / "out").read_text()
    finally:
        process.kill()
        # Whatever is there still ends when it has read.
        with contextlib.suppress(OSError):
            os.close(os.open(tmp_path / "pipe", os.O_WRONLY | os.O_NONBLOCK))


def wait_for(is_so: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_tables_are_not_wrapped_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    value = "0.123456789 " * 40
    print_table(("a", "b"), [(value, value)])
    assert capsys.readouterr().out.splitlines()[1].split() == value.split() * 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("~/photos", "/home/me/photos"),
        ("${PHOTOS}", "/data/my photos"),
        ("${PHOTOS}/${KIND}", "/data/my photos/cats"),
        ("a/$PHOTOS/~", "a/$PHOTOS/~"),
        ("plain", "plain"),
    ],
)
def test_variables_and_home_stand_for_what_they_are(text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: Mapping[str, str] = {"HOME": "/home/me", "PHOTOS": "/data/my photos", "KIND": "cats"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert expand_path(text, "data.folder.root") == Path(expected)


@pytest.mark.parametrize("text", ["${NOT_THERE}/x", "~nobody-of-this-name/x", "${EMPTY}/x"])
def test_variable_that_is_not_set_is_named_with_its_key(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(UserError, match=rf"^data\.folder\.root: {re.escape(text)}: "):
        expand_path(text, "data.folder.root")


def test_paths_of_a_space_know_variables(
    here: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(12):
            pixels = np.full((8, 8, 3), number, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    space = tmp_path / "space.yaml"
    text = TINY.replace("{digits: {max_train: 200}}", "{folder: {root: '${PLACE}/photos'}}")
    space.write_text(text + "image: {size: 16}\n")
    monkeypatch.setenv("PLACE", str(tmp_path))
    answer = here("augment-preview", space, "-o", "sheet.png")
    assert answer.code == 0, answer.err
    monkeypatch.delenv("PLACE")
    for command in (("augment-preview", space, "-o", "sheet.png"), ("check", space), ("run", space)):
        answer = here(*command)
        assert answer.code == 2
        assert "data.folder.root: ${PLACE}/photos: the environment variable PLACE is not set" in answer.err
    space.write_text(
        TINY.replace(
            "lenet5: {width: {choice: [0.5, 1]}, activation: {choice: [relu, tanh]}}",
            "resnet: {weights: '${PLACE}/w.pt'}",
        )
    )
    answer = here("run", space)
    assert answer.code == 2
    assert "model.resnet.weights: ${PLACE}/w.pt: the environment variable PLACE is not set" in answer.err
    space.write_text(TINY + "distill: {file: {path: '${PLACE}/w.pt'}}\n")
    answer = here("run", space)
    assert answer.code == 2
    assert "distill.file.path: ${PLACE}/w.pt: the environment variable PLACE is not set" in answer.err


@pytest.mark.parametrize(
    "command",
    [
        ("run", "../tiny.yaml", "--data", "folder:."),
        ("check", "../tiny.yaml", "--data", "folder:."),
        ("plan", "../tiny.yaml", "--data", "folder:."),
        ("augment-preview", "../tiny.yaml", "--data", "folder:.", "-o", "../sheet.png"),
        ("backbones", ".", "--model", "{resnet: {weights: x.pt}}"),
        ("train", "../one.yaml", "--data", "folder:."),
        ("pretrain", "../one.yaml", "--data", "folder:.", "--set", "pretrain=simclr"),
    ],
)
def test_studies_are_not_written_among_the_images(
    command: tuple[str, ...], tiny: Path, here: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tiny.parent / "photos"
    for label in ("cat", "dog"):
        (photos / label).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(np.full((8, 8, 3), number, dtype=np.uint8)).save(photos / label / f"{number}.png")
    (tiny.parent / "one.yaml").write_text("model: {lenet5: {}}\ndata: digits\ntraining: {epochs: 1}\n")
    monkeypatch.chdir(photos)
    answer = here(*command)
    assert is_one_line(answer), answer
    assert "--studies studies: is in the folder of the images, ., where it would count as a class" in answer.err
    assert sorted(path.name for path in photos.iterdir()) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("folders", "place", "is_apart"),
    [
        (("cat", "dog"), ".", False),
        (("cat", "dog"), "studies", False),
        (("cat", "dog"), "cat/studies", False),
        (("cat", "dog"), ".studies", True),
        (("cat", "dog"), "../studies", True),
        (("train/cat", "train/dog"), "studies", True),
        (("train/cat", "train/dog"), "train/studies", False),
    ],
)
def test_a_folder_is_apart_from_images_if_it_is_no_class(
    folders: tuple[str, ...], place: str, is_apart: bool, tmp_path: Path
) -> None:
    for folder in folders:
        (tmp_path / "photos" / folder).mkdir(parents=True)
    component = Component(path="data.folder", name="folder", args={"root": str(tmp_path / "photos")})
    with contextlib.nullcontext() if is_apart else pytest.raises(UserError, match="would count as a class"):
        must_be_apart(component, tmp_path / "photos" / place, "--studies")
