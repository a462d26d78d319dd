"""A first draft of a space: init."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from imgcls_search.api.options import Duration, PathLikeText, changes_of, images_of, refuse_other, seconds_of
from imgcls_search.api.session import session
from imgcls_search.errors import refuse_idle

if TYPE_CHECKING:
    from imgcls_search.jobs.init.draft import Draft as Drafted
    from imgcls_search.views.screens import Screens

FlipsName = Literal["none", "horizontal", "both"]


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A space drafted for some images, this machine and a time."""

    path: Path
    """The file that was written, which `run` accepts."""

    name: str
    """The name of the study."""

    space: str
    """The text of the file."""

    decisions: tuple[Mapping[str, Any], ...]
    """Each with `path`, `value` and the reason, `because`."""

    notes: tuple[str, ...]
    facts: Mapping[str, Any]
    """Facts about the images, the machine, the weights, the speeds and the time."""

    @classmethod
    def of(cls, drafted: Drafted, path: Path) -> Draft:
        """Return a draft that was written to a path."""
        return cls(
            path=path,
            name=drafted.name,
            space=drafted.space,
            decisions=tuple(one.to_dict() for one in drafted.decisions),
            notes=drafted.notes,
            facts=drafted.facts,
        )

    def _repr_html_(self) -> str:
        from imgcls_search.api.frames import card, table

        rows = [(one["path"], one["value"], one["because"]) for one in self.decisions]
        return card(f"Draft {self.path}", self.notes, table(("setting", "value", "because"), rows))


def init(
    data: PathLikeText,
    time: Duration = "1h",
    *,
    output: PathLikeText | None = None,
    flips: FlipsName | None = None,
    group: str | None = None,
    changes: Mapping[str, Any] | None = None,
    skip_unreadable: bool = False,
    force: bool = False,
    studies: PathLikeText = Path("studies"),
    weights_dir: PathLikeText | None = None,
    progress: bool | None = None,
) -> Draft:
    """Draft a search space for images, this machine and a time, and write it with a reason for each choice.

    Args:
        data: A folder, a table, or a data set such as `digits`.
        time: Time for search and confirmation: seconds, or a text such as `1h30m`.
        output: The YAML file to write; default: NAME.yaml in the working folder.
        flips: Which mirrored images keep their class: `none` (default), `horizontal` or `both`.
        group: Keep groups in one split: a table's column, or a regular expression on a folder's paths.
        changes: Values of the space to set yourself, by path.
        skip_unreadable: Leave out images that cannot be read.
        force: Replace a file.
        studies: The folder of the studies.
        weights_dir: Look for pretrained weights in this folder first.
        progress: Show progress; default: on a terminal and in a notebook.

    Raises:
        UserError: An argument, the images or the file is not usable.
    """
    if flips is not None:
        refuse_other("flips", flips, ("none", "horizontal", "both"))
    seconds = seconds_of(time, "--time")
    of_data, others = split(changes_of(changes))
    sets_flips(others, flips)
    component = images_of(data, group, of_data, skip_unreadable=skip_unreadable)
    with session(progress, weights_dir, uses_torch=True) as screens:
        drafted, target = draft_space(
            component,
            seconds=seconds,
            output=None if output is None else Path(output),
            ask_flips=lambda: flips,
            changes=others,
            force=force,
            studies=Path(studies),
            screens=screens,
        )
    return Draft.of(drafted, target)


def draft_space(
    component: Any,
    *,
    seconds: float,
    output: Path | None,
    ask_flips: Callable[[], FlipsName | None],
    changes: list[tuple[str, str]],
    force: bool,
    studies: Path,
    screens: Screens,
) -> tuple[Drafted, Path]:
    """Draft a space and write it; return the draft and the file.

    Raises:
        UserError: the images or the file is not usable.
    """
    from imgcls_search.data import must_exist
    from imgcls_search.jobs.init.draft import check_target, default_target, draft, write_draft

    must_exist(component)
    target = output or default_target(component)
    check_target(target, force=force)
    flips = ask_flips() or "none"
    with screens.drafting() as show:
        found = draft(
            component, seconds=seconds, root=studies, flips=flips, changes=changes, file=str(target), progress=show
        )
    write_draft(found, target, force=force)
    return found, target


def sets_flips(changes: Sequence[tuple[str, str]], flips: FlipsName | None) -> bool:
    """Tell whether changes of a space say which flips to use.

    Raises:
        UserError: `flips` say it too.
    """
    paths = [path for path, _ in changes if path in ("augment", "augment.flip") or path.startswith("augment.flip.")]
    if paths:
        refuse_idle({"--flips": flips}, f"together with --set {paths[0]}")
    return bool(paths)


def split(changes: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Split changes into those of the data and those of the rest of a space."""
    of_data = [change for change in changes if change[0].startswith("data.")]
    return of_data, [change for change in changes if change not in of_data]
