"""A study as an object: its findings, and its operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls_search.api.findings import Findings
from imgcls_search.api.options import (
    PathLikeText,
    as_data,
    changes_of,
    component_of_data,
    refuse_below,
    refuse_other,
    study_files_of,
)
from imgcls_search.api.report import Report
from imgcls_search.api.session import session
from imgcls_search.api.writing import write_bundle, write_configuration, write_report
from imgcls_search.errors import UserError

if TYPE_CHECKING:
    from imgcls_search.api.ensembles import Ensemble
    from imgcls_search.api.replaying import Replays, Strategy
    from imgcls_search.deploy.views import ViewsName
    from imgcls_search.jobs.bundle.deliver import Format
    from imgcls_search.jobs.reproduce import Reproduction
    from imgcls_search.study.result_facts import ConfirmedStudy
    from imgcls_search.views.browse import ListedStudy, UnreadableStudy


class Study(Findings):
    """A study; each property and method reads the database on access."""

    def confirm(
        self,
        top: int | None = None,
        seeds: int = 3,
        *,
        trial: int | None = None,
        again: bool = False,
        pretrain: bool = False,
        data: PathLikeText | None = None,
        weights_dir: PathLikeText | None = None,
        progress: bool | None = None,
    ) -> ConfirmedStudy:
        """Retrain the best trials with new seeds, choose by their mean, then score the winner on the test split once.

        Args:
            top: How many of the best trials to retrain; default: 3.
            seeds: New seeds per trial, and as many more to score the winner.
            trial: Retrain this trial only, instead of the best ones.
            again: Confirm again; this opens the test split once more.
            pretrain: Pretrain again for each seed, if trials pretrain.
            data: Where the images are now, if they moved.
            weights_dir: Look for pretrained weights in this folder first.
            progress: Show progress; default: on a terminal and in a notebook.

        Raises:
            UserError: An argument or the study is not usable.
            NoResultError: No trial is complete, or a training failed.
        """
        from imgcls_search.jobs.confirm import confirm

        if top is not None:
            refuse_below("top", top, 1)
        refuse_below("seeds", seeds, 2)
        moved_to = component_of_data(None if data is None else as_data(data))
        with session(progress, weights_dir, uses_torch=True) as screens, screens.training() as screen:
            found = confirm(
                self.files,
                top=top,
                seeds=seeds,
                again=again,
                watcher=screen,
                trial=trial,
                data=moved_to,
                pretrains=pretrain,
            )
        return {"study": self.name, **found}

    def reproduce(
        self,
        trial: int,
        seeds: int = 3,
        *,
        data: PathLikeText | None = None,
        weights_dir: PathLikeText | None = None,
        progress: bool | None = None,
    ) -> Reproduction:
        """Retrain a trial, and compare the result with its record.

        Raises:
            UserError: There is no such trial, or its images have changed.
        """
        from imgcls_search.jobs.reproduce import reproduce

        refuse_below("seeds", seeds, 2)
        moved_to = component_of_data(None if data is None else as_data(data))
        with session(progress, weights_dir, uses_torch=True) as screens, screens.training() as screen:
            return reproduce(self.files, trial, seeds=seeds, watcher=screen, moved_to=moved_to)

    def report(
        self,
        path: PathLikeText | None = None,
        *,
        trial: int | None = None,
        ablation: bool = False,
        seeds: int | None = None,
        data: PathLikeText | None = None,
        weights_dir: PathLikeText | None = None,
        progress: bool | None = None,
    ) -> Report:
        """Write a report of the study as one HTML page, which a notebook shows.

        Args:
            path: The page to write; by default `report.html` in the study's folder.
            trial: The trial that the page is about; default: the confirmed one, or else the best.
            ablation: Retrain the steps from the first configuration to the winner.
            seeds: New seeds per step of the ablation; default: 3.
            data: Where the images are now, if they moved; only with `ablation`.
            weights_dir: Look for pretrained weights in this folder first.
            progress: Show progress; default: on a terminal and in a notebook.

        Raises:
            UserError: An argument or the study is not usable, or the file cannot be written.
            NoResultError: No trial is complete.
        """
        if seeds is not None:
            refuse_below("seeds", seeds, 1)
        output = self.folder / "report.html" if path is None else Path(path)
        with session(progress, weights_dir, uses_torch=True) as screens:
            write_report(
                self.files,
                output,
                screens,
                trial=trial,
                ablation=ablation,
                seeds=seeds,
                data=None if data is None else as_data(data),
            )
        return Report(path=output, study=self.name)

    def export(
        self,
        path: PathLikeText,
        *,
        trial: int | None = None,
        target_precision: float | None = None,
        tta: ViewsName = "none",
        format: Format | None = None,  # noqa: A002 - as the command's option
        data: PathLikeText | None = None,
        progress: bool | None = None,
    ) -> Path:
        """Write the network as a folder that `load_model` reads; with a path ending in `.yaml`, its configuration.

        Args:
            path: The folder, or the YAML file, to write.
            trial: The number of a trial; default: the confirmed one, or else the best.
            target_precision: Answer only if confident enough that this share of the answers is right.
            tta: Average these views of an image: `none`, `mirror`, `shift` or `mirror_shift`.
            format: `onnx` (default), or `openvino` or `executorch`, which need the extra of that name.
            data: Where the images are now, if they moved.
            progress: Show progress; default: on a terminal and in a notebook.

        Raises:
            UserError: An argument, the study or the path is not usable.
            NoResultError: No trial is complete.
        """
        if format is not None:
            refuse_other("format", format, ("onnx", "openvino", "executorch"))
        output = Path(path)
        if output.suffix in (".yaml", ".yml"):
            if target_precision is not None or tta != "none" or format is not None or data is not None:
                raise UserError(f"{output}: target_precision, tta, format and data need a folder, not a YAML file")
            write_configuration(self.files, output, trial)
            return output
        with session(progress, uses_torch=True) as screens:
            from imgcls_search.jobs.bundle.weights import from_trial

            moved_to = component_of_data(None if data is None else as_data(data))
            trained = from_trial(self.files, trial, moved_to)
            write_bundle(
                trained,
                output,
                self.files.root,
                screens,
                moved=moved_to is not None,
                target_precision=target_precision,
                tta=tta,
                to=format or "onnx",
            )
        return output

    def ensemble(
        self,
        picks: int = 5,
        *,
        trial: int | None = None,
        output: PathLikeText | None = None,
        bundle: PathLikeText | None = None,
        distill: PathLikeText | None = None,
        student: int | None = None,
        test: bool = False,
        data: PathLikeText | None = None,
        weights_dir: PathLikeText | None = None,
        progress: bool | None = None,
    ) -> Ensemble:
        """Combine the best networks of the study into one model, picked on the validation images.

        Args:
            picks: Pick at most this many networks; one may be picked several times.
            trial: Start from this trial, and compare with it; default: the confirmed one, or else the best.
            output: The weights file to write; default: `ensemble.pt` in the study's folder.
            bundle: Also write the model as a folder that `load_model` reads.
            distill: Also train one network that learns from the ensemble, and write it into this folder.
            student: The trial whose configuration learns, with `distill`; default: `trial`.
            test: Score the ensemble and the best trial on the sealed test split.
            data: Where the images are now, if they moved.
            weights_dir: Look for pretrained weights in this folder first.
            progress: Show progress; default: on a terminal and in a notebook.

        Raises:
            UserError: An argument, the study or its images are not usable.
            NoResultError: No trial is complete, or a training failed.
        """
        from imgcls_search.api.ensembles import combine

        refuse_below("picks", picks, 2)
        with session(progress, weights_dir, uses_torch=True) as screens:
            return combine(
                self.files,
                screens,
                picks=picks,
                trial=trial,
                output=_path(output),
                bundle=_path(bundle),
                distill=_path(distill),
                student=student,
                test=test,
                data=None if data is None else as_data(data),
            )

    def replay(
        self,
        samplers: Strategy | Sequence[Strategy] = (),
        pruners: Strategy | Sequence[Strategy] = (),
        *,
        workers: int = 1,
        seed: int | None = None,
        seeds: int | None = None,
        share: float | None = None,
        max_epochs: int | None = None,
    ) -> Replays:
        """Replay other strategies on the recorded curves of the study, to see what they would have cost and found.

        Args:
            samplers: A sampler as in a space, such as `random` or `{"tpe": {...}}`, or several; default: the study's.
            pruners: A pruner, or several; each sampler is combined with each pruner.
            workers: Simulate this many trials at a time.
            seed: The seed; default: the study's.
            seeds: Compare on this many random parts of the study, with 90 % intervals.
            share: With `seeds`, the share of the configurations in each part; default: 0.67.
            max_epochs: With `seeds`, the epochs of each search; default: a third of what a whole part takes.

        Raises:
            UserError: An argument is not usable.
            StudyError: The study has too few curves.
        """
        from imgcls_search.api.replaying import replay_strategies, strategies_of

        refuse_below("workers", workers, 1)
        for name, value, least in (("seed", seed, 0), ("seeds", seeds, 2), ("max_epochs", max_epochs, 1)):
            if value is not None:
                refuse_below(name, value, least)
        if share is not None and not 0.01 <= share <= 1:
            raise UserError(f"share: {share!r} is not allowed; allowed: 0.01 to 1")
        return replay_strategies(
            self.files,
            strategies_of(samplers, "study.sampler"),
            strategies_of(pruners, "study.pruner"),
            workers=workers,
            seed=seed,
            seeds=seeds,
            share=share,
            max_epochs=max_epochs,
        )

    def try_configuration(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Request a trial of one configuration: the current run, or the next one, trains it to the end.

        Values that you leave out come from the best trial that has them.

        Args:
            changes: Values of the space to set, by path, such as `{"optimizer.adamw.lr": 3e-3}`.

        Raises:
            UserError: The space has no such setting, or `changes` is empty.
        """
        from dataclasses import asdict

        from imgcls_search.jobs.asking import ask

        return asdict(ask(self.files, changes_of(changes)))

    def copy(self, to: PathLikeText, *, with_folder: bool = False) -> str:
        """Copy the study as it is at one moment, even during a run; return the copy's location.

        Args:
            to: A file, a folder (ending in a slash), or the address of a PostgreSQL database; nothing is replaced.
            with_folder: Copy checkpoints and logs too; `to` is then a folder.

        Raises:
            StudyError: The location is taken.
            UserError: The location is not usable.
        """
        from imgcls_search.api.housekeeping import copy

        return copy(self.files, str(to), with_folder=with_folder)


def open_study(name: str, *, studies: PathLikeText = Path("studies"), storage: str | None = None) -> Study:
    """Open an existing study by its name.

    Args:
        name: The name of the study, for example `vit-digits`.
        studies: The folder of the studies.
        storage: A PostgreSQL database of studies instead of SQLite files.

    Raises:
        StudyError: There is no such study; the message suggests similar names.
    """
    files = study_files_of(name, studies, storage)
    files.must_exist()
    return Study(files)


def studies(
    folder: PathLikeText = Path("studies"), *, storage: str | None = None
) -> list[ListedStudy | UnreadableStudy]:
    """List the studies of a folder or a database: state, best trial, and whether it is confirmed.

    A study that cannot be read is listed with its `problem`.

    Raises:
        StudyError: The database cannot be reached.
    """
    from imgcls_search.study.address import settle
    from imgcls_search.views.browse import list_studies

    return list_studies(Path(folder), settle(storage))


def _path(given: PathLikeText | None) -> Path | None:
    return None if given is None else Path(given)
