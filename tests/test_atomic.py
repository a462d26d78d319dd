"""Writing whole or not at all: killed, out of space, refused, and several at once."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from imgcls_search import atomic

# Of Python 3.12 on, where other threads are about.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

OLD, NEW = b"old" * 1000, b"new" * 2000


def _in_a_child(work: Callable[[], None]) -> int:
    """Return the exit status of a forked process that does the work."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except OSError as error:
            os._exit(error.errno or 99)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _write_file(draft: Path) -> None:
    draft.write_bytes(NEW)


def _write_folder(draft: Path) -> None:
    draft.mkdir()
    (draft / "part").write_bytes(NEW)


def _content(path: Path) -> bytes:
    return (path / "part").read_bytes() if path.is_dir() else path.read_bytes()


@pytest.mark.parametrize("write", [_write_file, _write_folder])
def test_what_was_written_takes_the_place_and_nothing_else_is_left(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    target = tmp_path / "target"
    with atomic.replacing(target) as draft:
        write(draft)
        assert draft.parent == tmp_path
        assert not target.exists()
    assert _content(target) == NEW
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("write", [_write_file, _write_folder])
def test_a_failure_leaves_everything_as_it_was(tmp_path: Path, write: Callable[[Path], None]) -> None:
    target = tmp_path / "target"
    target.write_bytes(OLD)
    with pytest.raises(KeyboardInterrupt), atomic.replacing(target) as draft:  # noqa: PT012 - the block fails at its end
        write(draft)
        raise KeyboardInterrupt
    assert target.read_bytes() == OLD
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("moment", ["fsync", "chmod", "replace"])
def test_killed_at_any_moment_leaves_the_old_file_whole(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    target.write_bytes(OLD)

    def write() -> None:
        for owner, name in ((os, "fsync"), (atomic.shutil, "copymode"), (Path, "replace")):
            if name.startswith(moment) or (moment, name) == ("chmod", "copymode"):
                monkeypatch.setattr(owner, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        atomic.write_bytes(target, NEW)

    assert _in_a_child(write) == -signal.SIGKILL
    assert target.read_bytes() == OLD
    (leftover,) = (path for path in tmp_path.iterdir() if path != target)
    # So that people who clean a folder know them.
    assert leftover.suffix == atomic.SUFFIX
    atomic.write_bytes(target, NEW)
    assert target.read_bytes() == NEW


def test_content_is_on_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def noted_replace(path: Path, target: Path) -> Path:
        done.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    atomic.write_bytes(tmp_path / "target", NEW)
    assert done == ["file", "rename", "folder"]
    done.clear()
    with atomic.replacing(tmp_path / "folder") as draft:
        _write_folder(draft)
    assert done == ["file", "folder", "rename", "folder"]


def test_a_full_disk_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(OLD)

    def write() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        atomic.write_bytes(target, NEW)

    assert _in_a_child(write) == errno.EFBIG
    assert target.read_bytes() == OLD
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_takes_no_half_line(tmp_path: Path) -> None:
    target = tmp_path / "lines"
    atomic.append_line(target, "first")

    def write() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
        atomic.append_line(target, "a second line that has no room")

    assert _in_a_child(write) == errno.EFBIG
    assert target.read_text() == "first\n"
    target.write_text("half")
    atomic.append_line(target, "whole")
    assert target.read_text() == "half\nwhole\n"


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_are_those_of_a_file_that_is_opened(tmp_path: Path, mask: int) -> None:
    new, plain, kept = tmp_path / "new", tmp_path / "plain", tmp_path / "kept"
    kept.touch()
    kept.chmod(0o604)
    before = os.umask(mask)
    try:
        for path in (new, kept):
            atomic.write_bytes(path, NEW)
        plain.write_bytes(NEW)
    finally:
        os.umask(before)
    assert stat.S_IMODE(new.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o604


def test_a_folder_that_holds_something_and_a_missing_place_are_refused(tmp_path: Path) -> None:
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    for path in (full / "kept", file):
        path.write_bytes(OLD)
    for target, write in (
        (full, _write_file),
        (full, _write_folder),
        (tmp_path / "nowhere/target", _write_file),
        (file / "target", _write_file),
        (file, _write_folder),
    ):
        with pytest.raises(OSError), atomic.replacing(target) as draft:
            write(draft)
    assert sorted(tmp_path.iterdir()) == [file, full]
    assert (full / "kept").read_bytes() == file.read_bytes() == OLD
    for target in (full, tmp_path / "nowhere/target", file / "target"):
        with pytest.raises(OSError):
            atomic.check_writable(target)
    atomic.check_writable(tmp_path / "new")
    assert sorted(tmp_path.iterdir()) == [file, full]


def test_a_draft_of_a_name_of_its_own_replaces_what_a_killed_process_left(tmp_path: Path) -> None:
    draft, target = tmp_path / "folder.partial", tmp_path / "folder"
    draft.mkdir()
    (draft / "stale").touch()
    with atomic.replacing(target, draft=draft) as given:
        assert given == draft
        _write_folder(draft)
    assert [path.name for path in target.iterdir()] == ["part"]
    assert not draft.exists()


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    elsewhere, link = tmp_path / "elsewhere", tmp_path / "link"
    elsewhere.write_bytes(OLD)
    link.symlink_to(elsewhere)
    atomic.write_bytes(link, NEW)
    assert elsewhere.read_bytes() == OLD
    assert link.read_bytes() == NEW
    assert not link.is_symlink()


def test_a_name_as_long_as_a_file_system_takes_can_be_written(tmp_path: Path) -> None:
    for name in ("n" * 255, "ß" * 127):
        atomic.write_text(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"


def test_a_pipe_and_a_device_are_written_to(tmp_path: Path) -> None:
    code = "from pathlib import Path; from imgcls_search import atomic; atomic.write_text(Path('/dev/stdout'), 'text')"
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert piped.stdout == b"text"
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_bytes() == b"text"
    assert Path("/dev/stdout").is_symlink()
    atomic.check_writable(Path("/dev/null"))
    atomic.write_text(Path("/dev/null"), "text")
    assert Path("/dev/null").is_char_device()


def test_writers_at_the_same_time_each_leave_a_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "target"
    contents = [json.dumps([number] * 20_000) for number in range(8)]
    stop = threading.Event()
    seen: set[str] = set()

    def read() -> None:
        while not stop.is_set():
            if target.exists():
                seen.add(target.read_text())

    def write(content: str) -> None:
        for _ in range(5):
            atomic.write_text(target, content)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert target.read_text() in contents
    assert seen <= set(contents)
    assert list(tmp_path.iterdir()) == [target]


def test_text_that_is_not_utf_8_is_written_with_backslashes(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "names", os.fsdecode(b"caf\xe9"))
    assert (tmp_path / "names").read_bytes() == b"caf\\udce9"


def test_a_folder_in_which_nothing_was_written_goes_again(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "there" / "a" / "b", tmp_path / "there"):
        with pytest.raises(StopIteration), atomic.making(folder):
            next(folder.iterdir())
    assert list((tmp_path / "there").iterdir()) == []
    with atomic.making(tmp_path / "c" / "d"):
        (tmp_path / "c" / "log").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["c", "log", "there"]
