"""Run searches: run."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls_search import words
from imgcls_search.api.options import (
    Duration,
    PathLikeText,
    SpaceLike,
    as_data,
    changes_of,
    name_of,
    read_space_of,
    unlabeled_of,
    with_settings,
)
from imgcls_search.api.session import session
from imgcls_search.api.study import Study
from imgcls_search.errors import NoResultError

if TYPE_CHECKING:
    from imgcls_search.orchestrator.begin import Outcome
    from imgcls_search.space import Space
    from imgcls_search.study.files import StudyFiles
    from imgcls_search.views.screens import Screens

STUDIES = words.STUDIES


def run(
    space: SpaceLike,
    data: PathLikeText | None = None,
    *,
    changes: Mapping[str, Any] | None = None,
    name: str | None = None,
    unlabeled: PathLikeText | None = None,
    skip_unreadable: bool = False,
    workers: int | None = None,
    timeout: Duration | None = None,
    cluster: str | None = None,
    extend: bool = False,
    studies: PathLikeText = STUDIES,
    storage: str | None = None,
    weights_dir: PathLikeText | None = None,
    progress: bool | None = None,
) -> Study:
    """Run a search, or resume an interrupted one, and return its study.

    Args:
        space: The path of a YAML file, or the same as nested dictionaries.
        data: Other images: a folder, a table, or a data set such as `digits`.
        changes: Values of the space to set, by path, such as `{"study.trials": 20}`.
        name: The name of the study; default: SPACE-DATA, such as `vit-photos`.
        unlabeled: Images to pretrain on, whose labels are not used.
        skip_unreadable: Leave out images that cannot be read.
        workers: Trials at a time; default: one per core or GPU.
        timeout: Stop this call after this time: seconds, or a text such as `1h30m`.
        cluster: Train on a Ray cluster: `auto`, `local` or `HOST:PORT`.
        extend: Extend the study by what the space adds; earlier trials are kept.
        studies: The folder of the studies.
        storage: A PostgreSQL database of studies instead of SQLite files.
        weights_dir: Look for pretrained weights in this folder first.
        progress: Show progress; default: on a terminal and in a notebook.

    Raises:
        UserError: An argument, the space, the images or the study is not usable.
        NoResultError: The search ended without a trial to use.
        KeyboardInterrupt: The search was interrupted; its trials are saved, and the same call resumes it.
    """
    given = with_settings(changes_of(changes), name=name, workers=workers, timeout=timeout)
    found = read_space_of(
        space,
        given,
        None if data is None else as_data(data),
        skip_unreadable=skip_unreadable,
        unlabeled=unlabeled_of(unlabeled),
    )
    with session(progress, weights_dir) as screens:
        search = Search.of(found, name_of(space), Path(studies), storage)
        outcome = search.run(screens, cluster=cluster, extends=extend)
    stop_as_asked(outcome.ending)
    study = Study(search.files)
    if not study.status["best"]:
        raise NoResultError(f"study {study.name!r} ended with no usable trial; see study.status: {study.why_nothing()}")
    return study


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search with its study, before it starts."""

    space: Space
    files: StudyFiles

    @classmethod
    def of(cls, space: Space, source: str, studies: Path, storage: str | None) -> Search:
        """Find the study of a space; `source` names the space in messages.

        Raises:
            UserError: nothing is searched in the space, the storage is not a valid address, or the studies would be
                among the images.
            DataError: its images do not exist.
        """
        from imgcls_search.data import must_be_apart, must_exist
        from imgcls_search.executors import processes
        from imgcls_search.orchestrator.study_data import with_known_name
        from imgcls_search.study.address import settle
        from imgcls_search.study.files import find_study

        # Another process imports torch while this one imports Optuna.
        processes.warm_up()
        space.refuse_config(Path(source))
        must_exist(space.first().component("data"))
        must_be_apart(space.first().component("data"), studies, "--studies")
        address = settle(storage, space.study["storage"])
        space = with_known_name(space, studies, address)
        return cls(space=space, files=find_study(studies, space.name, address))

    def run(self, screens: Screens, *, cluster: str | None = None, extends: bool = False) -> Outcome:
        """Run the search, and return how it ended.

        Raises:
            UserError: the space, the data, the device or the study is not usable, or there is no study to extend.
            NoResultError: no configuration can be tried, or trials keep failing the same way.
            KeyboardInterrupt: Ctrl-C was pressed twice, or before the first trial.
        """
        if extends:
            # Otherwise, a misspelled name would begin another study.
            self.files.must_exist()
        from imgcls_search.orchestrator.begin import run as run_search

        screens.say(f"study {self.space.name} in {self.files.store}")
        with screens.search() as screen:
            return run_search(self.space, self.files.root, screen, self.files.address, cluster=cluster, extends=extends)


def stop_as_asked(ending: str) -> None:
    """Forward a signal to the program after the search has saved.

    Raises:
        KeyboardInterrupt: the signal was Ctrl-C.
    """
    if ending == "interrupted":
        raise KeyboardInterrupt("stopped and saved; the same call resumes the search")
    if ending == "terminated":
        # Call the program's own handler, or the system's, which ends it.
        signal.raise_signal(signal.SIGTERM)
        raise KeyboardInterrupt("stopped and saved; the same call resumes the search")
