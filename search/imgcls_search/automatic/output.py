"""The paths of `auto` (output folder, space file, study), and the checks on them before it starts."""

from __future__ import annotations

import glob
import json
from dataclasses import dataclass
from pathlib import Path

from imgcls_search import atomic
from imgcls_search.automatic import ledger
from imgcls_search.automatic.bundling import clear_drafts as clear_bundle_drafts
from imgcls_search.catalog import catalog, refuse_contradictions
from imgcls_search.config import Component, expand_path
from imgcls_search.data import must_be_apart, must_exist
from imgcls_search.errors import UserError, writing
from imgcls_search.jobs.export import refuse_pretraining
from imgcls_search.orchestrator.code_used import refuse_unfit
from imgcls_search.orchestrator.study_data import with_known_name
from imgcls_search.space import Space, read_space
from imgcls_search.space.study_section import name_of_images
from imgcls_search.study.address import Address
from imgcls_search.study.files import StudyFiles, find_study
from imgcls_search.trial import can_be_confirmed
from imgcls_search.words import argument


@dataclass(frozen=True, kw_only=True)
class OutputFolder:
    """The folder that `auto` writes into."""

    out: Path
    space_file: Path

    @property
    def account(self) -> Path:
        """The account of the time, until there is a study."""
        return self.out / ledger.FILE

    @property
    def bundle(self) -> Path:
        """The deployable model."""
        return self.out / "model"

    @property
    def config(self) -> Path:
        """The chosen configuration."""
        return self.out / "best.yaml"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.out / "report.html"


def find(component: Component, out: Path | None, studies: Path) -> OutputFolder:
    """Return the output folder for some images; it may exist from an earlier call.

    Raises:
        UserError: it contains other files, or it or the studies would be among the images.
        DataError: the images do not exist.
    """
    must_exist(component)
    chosen = out if out is not None else Path(f"auto-{name_of_images(component)}")
    found = OutputFolder(out=chosen, space_file=chosen / f"{name_of_images(component)}.yaml")
    for option, folder in (("-o", chosen), ("--studies", studies)):
        must_be_apart(component, folder, option)
    _refuse_study(component)
    if chosen.exists():
        if not chosen.is_dir():
            raise UserError(f"{chosen}: is a file; allowed: a folder of an earlier call, or a new one (-o FOLDER)")
        is_ours = found.account.is_file() or found.space_file.is_file()
        if not is_ours and any(chosen.iterdir()):
            raise UserError(
                f"{chosen}: exists and is not of an earlier call for these images; choose another folder with -o"
            )
    return found


def refuse_others(output: OutputFolder) -> None:
    """Refuse to replace results that no earlier call for the study has written: a space file alone may be of `init`.

    Raises:
        UserError: there are any.
    """
    for path in (output.bundle, output.config, output.report):
        if path.exists():
            raise UserError(
                f"{path}: is there already, and not of an earlier call for this study; move it away, or choose another "
                "folder with -o"
            )


def clear_drafts(output: OutputFolder) -> None:
    """Delete the half-written files of a killed call, and nothing else."""
    clear_bundle_drafts(output.bundle)
    for target in (output.account, output.space_file, output.config, output.report):
        for draft in output.out.glob(f".{glob.escape(target.name[:40])}.*{atomic.SUFFIX}"):
            draft.unlink(missing_ok=True)


def make(output: OutputFolder) -> None:
    """Make the folder.

    Raises:
        UserError: it cannot be made.
    """
    with writing(output.out):
        output.out.mkdir(parents=True, exist_ok=True)


def _refuse_study(component: Component) -> None:
    """Refuse the folder of a study as a folder of images."""
    root = component.args.get("root")
    if component.name != "folder" or root is None:
        return
    folder = expand_path(root, f"{component.path}.root").absolute()
    # Not `with_suffix`, since the name of a study may have a point.
    is_study = (folder / "lock").exists() or (folder.parent / f"{folder.name}.db").exists()
    if is_study and (folder / "checkpoints").is_dir():
        raise UserError(f"{root}: is the folder of a study, not of images; give the folder of the images")


def read(output: OutputFolder, component: Component, changes: list[tuple[str, str]]) -> Space:
    """Read the space in the folder, with the current paths of its images.

    Raises:
        SpaceError, UserError: it is invalid or belongs to other images.
    """
    space = read_space(output.space_file, catalog(), overrides=changes)
    written = space.first().component("data")
    if written.name != component.name:
        raise UserError(
            f"{output.space_file}: is for images of {written.name}, not of {component.name}; choose another folder "
            "with -o"
        )
    if moved := _moved(written, component):
        space = read_space(output.space_file, catalog(), overrides=[*changes, *moved])
    refuse_contradictions(space)
    refuse_unfit(space)
    space.refuse_config(output.space_file)
    _refuse_objectives(space, output.space_file)
    return space


def _refuse_objectives(space: Space, file: Path) -> None:
    """Refuse objectives by which no single model can be chosen and confirmed."""
    refuse_pretraining(space.objectives, "auto")
    if len(space.objectives) > 1 or not can_be_confirmed(space.objectives):
        path, names = "study.objectives", ", ".join(metric for metric, _ in space.objectives)
        raise UserError(
            f"{space.locate(path)}: {path}: {names}: auto delivers one model, and needs one objective that images are "
            f"scored by; set limits for sizes and costs, or search with: imgcls-search run {argument(file)}"
        )


def _moved(written: Component, now: Component) -> list[tuple[str, str]]:
    """Return the paths of a data section that differ from those in a space file."""
    found = []
    for key in ("root", "file"):
        then, there = written.args.get(key), now.args.get(key)
        if then is not None and there is not None:
            places = [expand_path(path, f"{now.path}.{key}").absolute() for path in (then, there)]
            if places[0] != places[1]:
                found.append((f"{now.path}.{key}", json.dumps(str(places[1]))))
    return found


def study_of(space: Space, studies: Path, address: Address | None) -> tuple[Space, StudyFiles]:
    """Return a space with its study's name, and the files of that study, which may not exist yet."""
    space = with_known_name(space, studies, address)
    return space, find_study(studies, space.name, address)
