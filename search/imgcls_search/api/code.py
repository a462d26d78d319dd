"""The folders and modules of the user's own functions."""

from __future__ import annotations

from pathlib import Path

from imgcls_search import own_code
from imgcls_search.api.options import PathLikeText


def add_code(place: PathLikeText) -> None:
    """Allow the functions of a folder's modules, or of an installed module, which a space names as `module:name`.

    Models, metrics and data sources may be such functions. A space sets their arguments, so only what you name here or
    in `PYTHONPATH` is allowed: no other installed packages, and not the working folder or that of a notebook.
    `$IMGCLS_CODE` does the same for commands.

    Raises:
        UserError: There is no such folder or module.
    """
    own_code.add(Path(place))
