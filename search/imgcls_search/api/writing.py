"""Write files of a study: a configuration, a bundle, a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls_search.api.options import component_of_data
from imgcls_search.errors import refuse_idle

if TYPE_CHECKING:
    from imgcls_search.deploy.views import ViewsName
    from imgcls_search.jobs.bundle.deliver import Format
    from imgcls_search.study.files import StudyFiles
    from imgcls_search.views.screens import Screens


def write_configuration(files: StudyFiles, output: Path, trial: int | None) -> str:
    """Write the configuration of a trial as YAML, and return the text.

    Raises:
        UserError: there is no such study or trial, or the file cannot be written.
    """
    from imgcls_search import atomic
    from imgcls_search.errors import writing
    from imgcls_search.jobs.export import export_trial

    exported = export_trial(files, trial)
    with writing(output):
        atomic.write_text(output, exported)
    return exported


def write_bundle(
    trained: Any,
    output: Path,
    studies: Path,
    screens: Screens,
    *,
    moved: bool,
    target_precision: float | None,
    tta: ViewsName,
    to: Format,
) -> Any:
    """Write trained weights as a bundle, and return its metrics.

    Raises:
        UserError: the folder exists, or the weights are not usable.
    """
    from imgcls_search.executors.helper import image_cache
    from imgcls_search.jobs.bundle.deliver import deliver

    with screens.steps() as step:
        return deliver(
            trained,
            output,
            image_cache(studies),
            screens.say,
            step,
            must_be_same=moved,
            target_precision=target_precision,
            tta=tta,
            to=to,
        )


def write_report(
    files: StudyFiles,
    output: Path,
    screens: Screens,
    *,
    trial: int | None,
    ablation: bool,
    seeds: int | None,
    data: str | None,
) -> int:
    """Write the page of a study and return its size in bytes.

    Raises:
        UserError: an argument or the study is not usable, or the file cannot be written.
    """
    from imgcls_search import atomic
    from imgcls_search.errors import writing

    if not ablation:
        refuse_idle({"--seeds": seeds, "--data": data}, "without --ablation")
    from imgcls_search.jobs.ablation import SEEDS, ablate
    from imgcls_search.views.report import write_report as write

    files.must_exist()
    with writing(output):
        atomic.check_writable(output)
    if ablation:
        with screens.training() as screen:
            ablate(files, seeds=seeds or SEEDS, watcher=screen, trial=trial, data=component_of_data(data))
    with screens.steps() as steps:
        return write(files, output, trial, steps)
