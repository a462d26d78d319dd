"""A person's own functions: where their modules are."""

from __future__ import annotations

from pathlib import Path

from imgcls_search import own_code
from imgcls_search.api.options import PathLikeText


def add_code(folder: PathLikeText) -> None:
    """Look in a folder for modules of your own, whose functions a space names as `module:name`.

    Models, metrics and data sources may be such functions. Installed packages are found without this; the working
    folder and the folder of a notebook are not searched unless you name them here. `$IMGCLS_CODE` does the same for
    commands.

    Raises:
        UserError: There is no such folder.
    """
    own_code.add_folder(Path(folder))
