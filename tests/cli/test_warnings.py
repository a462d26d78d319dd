"""What libraries warn of reaches a user as plain lines, without paths of installed packages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import TINY, Answer
from tests.test_fonts import STRANGE

PROVOKE = """
import io, logging, multiprocessing, os, sys, warnings
from pathlib import Path

import numpy as np
from PIL import Image

from imgcls_search import terminal
from imgcls_search.executors import processes


def provoke(connection):
    Image.MAX_IMAGE_PIXELS = 150
    damaged = io.BytesIO()
    exif = Image.Exif()
    exif[270] = "x" * 50
    # A TIFF header that promises more entries than there are.
    Image.new("RGB", (4, 4)).save(damaged, "JPEG", exif=b"Exif\\0\\0" + exif.tobytes()[6:20])
    Image.open(damaged).getexif()
    palette = Image.new("P", (4, 4))
    palette.info["transparency"] = bytes(range(4))
    palette.convert("RGB")
    buffer = io.BytesIO()
    Image.new("L", (15, 15)).save(buffer, "PNG")
    Image.open(buffer)
    logging.getLogger("some.library").warning("cannot read %s", np.__file__)
    for _ in range(2):
        warnings.warn_explicit("see " + np.__file__, FutureWarning, np.__file__, 1, registry={})
    if connection is not None:
        connection.send("done")


if __name__ == "__main__":
    if sys.argv[1] == "here":
        terminal.show_plain_warnings()
        provoke(None)
    else:
        # Started processes import what they run: they never run this script again.
        from provoke import provoke as imported

        process, connection = processes.start(imported, "provoker")
        assert connection.recv() == "done"
        process.join()
"""


def provoking(folder: Path, **variables: str) -> dict[str, str]:
    """Write a module that lets libraries warn of everything that they warn of; return the environment to use it in."""
    (folder / "provoke.py").write_text(PROVOKE)
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[2] / "search")])
    return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "", **variables}


def provoked(folder: Path, where: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Let libraries warn in this process or one that is started."""
    env = provoking(folder, **variables)
    command = [sys.executable, str(folder / "provoke.py"), where]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120)


def is_plain(err: str) -> bool:
    """Tell whether each of the warnings is one plain line, once."""
    lines = err.splitlines()
    assert all(line.startswith("warning: ") for line in lines), err
    assert any("DecompressionBomb" in line or "exceeds limit of 150 pixels" in line for line in lines), err
    assert any(line.startswith("warning: PIL: Palette images with Transparency") for line in lines), err
    assert any(line.startswith("warning: some: cannot read numpy") for line in lines), err
    assert [line for line in lines if "numpy: see " in line] == [f"warning: numpy: see numpy{os.sep}__init__.py"]
    assert "site-packages" not in err
    return True


def test_warnings_are_plain_lines(tmp_path: Path) -> None:
    answer = provoked(tmp_path, "here")
    assert answer.returncode == 0, answer.stderr
    assert is_plain(answer.stderr)


def test_warnings_of_started_processes_are_plain_lines(tmp_path: Path) -> None:
    answer = provoked(tmp_path, "started")
    assert answer.returncode == 0, answer.stderr
    assert is_plain(answer.stderr)


def test_warnings_can_be_errors_or_silent(tmp_path: Path) -> None:
    assert provoked(tmp_path, "here", PYTHONWARNINGS="error").returncode != 0
    answer = provoked(tmp_path, "here", PYTHONWARNINGS="ignore")
    assert (answer.returncode, answer.stderr) == (0, f"warning: some: cannot read numpy{os.sep}__init__.py\n")


def test_class_names_that_fonts_lack_bring_no_warning(
    tmp_path: Path, imgcls: Callable[..., Answer], here: Callable[..., Answer]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (36, 16, 16, 3), np.uint8)
    for number, image in enumerate(pixels):
        folder = tmp_path / "photos" / STRANGE[number % len(STRANGE)]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    tiny = TINY.replace("digits: {max_train: 200}", "folder: {root: photos}").replace(
        "pictures: false", "pictures: true"
    )
    (tmp_path / "tiny.yaml").write_text(tiny.replace("trials: 4", "trials: 2").replace("epochs: 5", "epochs: 2"))
    objectives = ("--set", "study.objectives={accuracy: maximize, params: minimize}")
    answers = [imgcls("run", "tiny.yaml", "--workers", "1", *objectives)]
    answers += [
        here("augment-preview", "tiny.yaml", "-o", "sheet.png"),
        here("front", "tiny-photos", "-o", "front.png"),
        here("report", "tiny-photos", "-o", "report.html"),
    ]
    assert [answer.code for answer in answers] == [0] * 4, answers
    assert list((tmp_path / "studies/tiny-photos/artifacts").iterdir())
    logs = [path.read_text() for path in (tmp_path / "studies/tiny-photos/logs").iterdir()]
    for text in [*logs, *(answer.out + answer.err for answer in answers)]:
        assert not re.search("warning|site-packages|Glyph|findfont", text), text
