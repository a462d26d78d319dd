"""Check the pages: their commands run, their snippets parse, and their error messages are those of the program."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import imgcls_search as ic
import numpy as np
import pytest
import yaml
from filelock import FileLock
from imgcls_search.catalog import catalog
from imgcls_search.space import parse
from PIL import Image

from tests.conftest import PATIENCE, Answer, begin_command
from tests.docs.pages import ROOT, Block, Page, commands, known_commands, pages
from tests.warm import Warm

PAGES = {page.name: page for page in pages()}
START = "docs/start.md"
WITH_COMMANDS = [
    name
    for name, page in PAGES.items()
    if name != START and any(block.commands and not block.skipped for block in page.blocks)
]
SNIPPETS = [
    pytest.param(page, block, id=f"{name}-{number}")
    for name, page in PAGES.items()
    for number, block in enumerate(page.blocks)
    if block.language in ("yaml", "toml", "python") and not block.skipped
]

ENDLESS = ("dashboard", "serve")
SMALL = ("--set", "training.epochs=2", "--set", "training.batch_size=16", "--set", "study.pictures=false")
QUICK = {
    "run": (*SMALL, "--set", "study.trials=2", "--workers", "1"),
    "check": ("--samples", "2"),
    "inspect": ("--quick-epochs", "1"),
    "init": ("--time", "20s", "--yes"),
    "plan": ("--epochs", "1"),
    "confirm": ("--top", "1", "--seeds", "2"),
}
"""Options added to commands for which the page adds none, so that each takes only seconds."""

SHALLOW = ("--set", "model.vit.depth=1", "--set", "start=[]")
FEW = (*SMALL, *SHALLOW, "--set", "study.trials=3", "--workers", "1", "--set", "study.learn_from=none")
PREPARED = (
    ("run", "spaces/vit.yaml", *FEW, "--set", "data.digits.max_train=200"),
    ("run", "spaces/vit.yaml", "--data", "folder:photos", *FEW, "--set", "image.size=16"),
    ("export", "vit-photos", "-o", "best.yaml"),
    ("train", "best.yaml"),
    ("export", "vit-digits", "--bundle", "model"),
)
"""Commands that make what all pages need: two studies, a trained configuration and a bundle."""


def test_every_command_and_option_exists() -> None:
    known, found = known_commands(), commands()
    assert len(found) > 80
    for name, *arguments in found:
        if f"{name} {arguments[0] if arguments else ''}" in known:
            name = f"{name} {arguments.pop(0)}"
        options = {option for each in known[name].params for option in (*each.opts, *each.secondary_opts)}
        assert {word for word in arguments if re.match(r"--?[a-z]", word)} - {"--help"} <= options, (name, arguments)


def test_every_command_but_help_is_on_a_page() -> None:
    shown = [" ".join(words) + " " for words in commands()]
    assert [name for name in known_commands() if not any(line.startswith(f"{name} ") for line in shown)] == []


PATTERN = re.compile(r"(?<!\\)[][*?]")
"""Characters that make a word a file name pattern; zsh refuses a command whose pattern matches no file."""


def test_every_block_can_be_pasted_into_a_shell() -> None:
    blocks = [(page.name, block.text) for page in PAGES.values() for block in page.blocks if block.language == "bash"]
    assert len(blocks) > 80
    for name, text in blocks:
        checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, timeout=PATIENCE)
        assert (checked.returncode, checked.stderr) == (0, ""), name
        for line in text.splitlines():
            bare = re.sub(r"'[^']*'|\"[^\"]*\"|(^| )#.*", "", line)
            assert not PATTERN.search(bare), f"{name}: needs quotes: {line}"


@pytest.mark.parametrize(("page", "block"), SNIPPETS)
def test_snippets_are_right(page: Page, block: Block, tmp_path: Path) -> None:
    match block.language:
        case "yaml":
            is_whole = isinstance(found := yaml.safe_load(block.text), dict) and "model" in found
            text = block.text if is_whole else f"{block.text}\nmodel: {{lenet5: {{}}}}\n"
            parse(text, catalog(), source=page.name)
        case "toml":
            pytest.importorskip("tomllib").loads(block.text)
        case _:
            code = compile(block.text, page.name, "exec")
            if block.is_run:
                done = subprocess.run(
                    [sys.executable, "-c", block.text], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE
                )
                assert done.returncode == 0, done.stderr
            assert code.co_code


PYTHON = "docs/how-to/use-python.md"
QUICKER = {
    'time="1h"': 'time="10m"',
    '"study": {"trials": 20}': '"study": {"trials": 2, "pictures": False, "learn_from": "none"}, "image": {"size": 16}',
    '"training": {"epochs": 15}': '"training": {"epochs": 1, "batch_size": 16}',
}


@pytest.mark.slow
def test_the_code_of_the_python_page_runs(tmp_path: Path, run_script: Callable[..., Answer], warm: Warm | None) -> None:
    make_photos(tmp_path)
    # The page needs a space that an earlier call of auto drafted; this one is small enough for a test.
    for lines in PAGES[START].prepare:
        _prepare(lines, tmp_path, warm)
    blocks = [block.text for block in PAGES[PYTHON].blocks if block.language == "python"]
    modules = {found[1]: text for text in blocks if (found := re.match(r"# (\w+/\w+\.py)\n", text))}
    assert modules
    for name, text in modules.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    code = "".join(text for text in blocks if text not in modules.values())
    for slow, quick in QUICKER.items():
        assert slow in code
        code = code.replace(slow, quick)
    (tmp_path / "page.py").write_text(f"{code}\nprint(result.folder, study.name, [s['study'] for s in ic.studies()])\n")
    answer = run_script(tmp_path / "page.py", cwd=tmp_path)
    assert answer.code == 0, answer.err
    assert answer.out.strip().endswith("small-resnets ['photos', 'small-resnets', 'towers']"), answer.out


CALLS = re.findall(r"`((?:study = )?(?:ic|study)\.[^`]+)`", (ROOT / PYTHON).read_text())


@pytest.mark.parametrize("call", CALLS)
def test_calls_of_the_python_page_fit_their_functions(call: str) -> None:
    tree = ast.parse(call).body[0]
    assert isinstance(tree, (ast.Assign, ast.Expr))
    calls = [node for node in ast.walk(tree.value) if isinstance(node, ast.Call)]
    for node in calls:
        assert isinstance(node.func, ast.Attribute)
        match ast.unparse(node.func.value).split(".")[0].split("(")[0]:
            case "ic":
                owner = ic.Model if "load_model" in ast.unparse(node.func.value) else ic
            case _:
                owner = ic.Study
        function, bare = getattr(owner, node.func.attr), [None] * len(node.args)
        signature = inspect.signature(function)
        if owner is not ic:
            bare.append(None)
        signature.bind(*bare, **dict.fromkeys(word.arg for word in node.keywords if word.arg is not None))
    if not calls and isinstance(tree.value, ast.Attribute):
        assert hasattr(ic.Study if ast.unparse(tree.value.value) == "study" else ic, tree.value.attr)


def test_the_shown_error_is_what_the_program_says() -> None:
    shown = [
        line
        for page in PAGES.values()
        for block in page.blocks
        for line in re.findall(r"^error: bad\.yaml:3:18: (.+)$", block.text, re.MULTILINE)
    ]
    assert shown
    for line in shown:
        with pytest.raises(Exception, match=re.escape(line)):
            parse("\n\nmodel: {vit: {  widht: 3}}", catalog(), source="bad.yaml")


def test_the_start_page_works_as_it_stands(tmp_path: Path, imgcls: Callable[..., Answer], warm: Warm | None) -> None:
    make_photos(tmp_path)
    run_page(PAGES[START], tmp_path, imgcls, warm)
    written = "auto-photos/model/model.onnx auto-photos/report.html photos.yaml report.html model/model.onnx"
    assert [name for name in written.split() if not (tmp_path / name).is_file()] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_COMMANDS)
def test_commands_of_a_page_run_in_their_order(
    name: str, prepared: Path, tmp_path: Path, imgcls: Callable[..., Answer], warm: Warm | None
) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True, symlinks=True)
    run_page(PAGES[name], tmp_path, imgcls, warm)


def run_page(page: Page, folder: Path, imgcls: Callable[..., Answer], warm: Warm | None) -> None:
    """Run the commands of a page, with the additions from its comments."""
    for block in page.prepare:
        _prepare(block, folder, warm)
    for block in page.blocks:
        if (name := re.match(r"# ([a-z]+\.yaml)\b", block.text)) and block.language == "yaml":
            (folder / name[1]).write_text(block.text)
        if block.skipped:
            continue
        for words in block.commands:
            redirected = None
            if ">" in words:
                words, redirected = words[: words.index(">")], words[-1]
            assert words[0] not in ENDLESS, f"{page.name}: {words[0]} runs until it is stopped; skip the block"
            if "--bundle" in words:
                # Another page or `PREPARED` may have made the same bundle, and no command replaces one.
                shutil.rmtree(folder / words[words.index("--bundle") + 1], ignore_errors=True)
            added = page.options(words)
            answer = imgcls(*words, *(QUICK.get(words[0], ()) if added is None else added))
            assert answer.code == block.code, (page.name, words, answer.out, answer.err)
            assert answer.out or answer.err, (page.name, words)
            if redirected:
                (folder / redirected).write_text(answer.out)


FORKED = """
import os, sys
sys.path.insert(0, {root!r})
from tests.warm import Warm
process = Warm({names!r}).start(sys.argv[1:], os.getcwd(), os.environ)
for stream, text in zip((sys.stdout, sys.stderr), process.communicate({patience})):
    stream.write(text)
sys.exit(process.wait())
"""
"""A script that forks a command from the server of the tests."""


def _prepare(lines: str, folder: Path, warm: Warm | None) -> None:
    """Run shell lines; `imgcls-search` in them is that of this environment."""
    bin_folder = folder / ".bin"
    bin_folder.mkdir(exist_ok=True)
    cold = f'#!/bin/sh\nexec "{sys.executable}" {{}} "$@"\n'
    texts = {"imgcls-search": cold.format("-m imgcls_search"), "python": cold.format("")}
    if warm is not None:
        texts["forked.py"] = FORKED.format(root=str(ROOT), names=warm.names, patience=PATIENCE)
        texts["imgcls-search"] = cold.format(f'-S "{bin_folder / "forked.py"}"')
    for name, text in texts.items():
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-ec", lines], cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, (lines, done.stdout, done.stderr)


@pytest.fixture
def prepared(tmp_path_factory: pytest.TempPathFactory, warm: Warm | None) -> Path:
    """Return a folder with the files that all pages need, made once for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "pages"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            making = folder.with_name("pages.new")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            make_photos(making)
            for command in PREPARED:
                process = begin_command(command, making, os.environ, warm)
                out, err = process.communicate(timeout=PATIENCE)
                assert process.returncode == 0, (command, out, err)
            making.rename(folder)
    return folder


def make_photos(folder: Path) -> None:
    """Write three classes of 40 images, each class with a different tint, and the other files that pages mention."""
    rng = np.random.default_rng(0)
    (folder / "spaces").symlink_to(ROOT / "spaces")
    for place, name in enumerate(("cat", "dog", "owl")):
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(40):
            pixels = rng.integers(0, 150, (20, 20, 3))
            pixels[..., place] += 100
            Image.fromarray(pixels.astype("uint8")).save(folder / "photos" / name / f"{index}.jpg")
    for several in ("more-photos", "folder-of-scans", "many-photos"):
        shutil.copytree(folder / "photos" / "cat", folder / several)
    Image.fromarray(np.full((8, 8), 90, "uint8")).save(folder / "scan.png")
    (folder / "weights").mkdir()
