"""User functions, named as `module:name`: find, import and identify them. Never from the working folder.

A space, a database or a weights file may come from anyone, and says which function is called with which arguments. So a
module must be one that the user has named: in a folder of `PYTHONPATH` or of `IMGCLS_CODE`, or an installed one whose
name is there. Any other installed package could do too much, such as read a pickle. The folder in which a program
happens to run, or that of a script or a notebook, does not count.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import re
import sys
from collections.abc import Iterator
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from imgcls_search.errors import UserError, first_line

VARIABLE = "IMGCLS_CODE"
"""Environment variable with the folders of user modules and with installed modules, separated as folders in PATH."""

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_REFERENCE = re.compile(rf"{_NAME}(\.{_NAME})*:{_NAME}")

PATTERN = rf"(?:{_NAME}\.)*{_NAME}:{_NAME}"
"""The same as `is_reference`, as a pattern."""

_digests: dict[str, str] = {}
"""Digests of the sources that modules of this process were imported from."""


def is_reference(text: str) -> bool:
    """Tell whether a text has the form `module:name`."""
    return _REFERENCE.fullmatch(text) is not None


def add(place: Path) -> None:
    """Allow functions of a folder's modules, or of an installed module, in this process and in those that it starts.

    Raises:
        UserError: there is no such folder or module.
    """
    folder = place.expanduser().absolute()
    if folder.is_dir():
        text = str(folder)
    elif _is_installed(str(place)):
        text = str(place)
    else:
        raise UserError(f"add_code {folder}: no such folder; allowed: {_PLACES}")
    known = _named()
    if text not in known:
        os.environ[VARIABLE] = os.pathsep.join([*known, text])


_PLACES = "a folder of Python modules, or the name of an installed module"


def _named() -> list[str]:
    return [text for text in os.environ.get(VARIABLE, "").split(os.pathsep) if text]


def folders() -> list[Path]:
    """Return the folders that the user names for modules.

    Raises:
        UserError: one does not exist.
    """
    found = []
    for text in _named():
        folder = Path(text).expanduser().absolute()
        if folder.is_dir():
            found.append(folder)
        elif not _is_installed(text):
            raise UserError(f"{VARIABLE}: {folder}: no such folder; allowed: {_PLACES}")
    return found


def _is_installed(name: str) -> bool:
    return name.isidentifier() and name not in sys.stdlib_module_names and _find(name, module_path()) is not None


def _is_named(top: str, spec: ModuleSpec) -> bool:
    """Tell whether a module that was found is one that the user has named."""
    named = [*map(str, folders()), *(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path)]
    allowed = {os.path.realpath(folder) for folder in named}
    places = [spec.origin] if spec.submodule_search_locations is None else list(spec.submodule_search_locations)
    return top in _named() or all(
        place is not None and os.path.realpath(os.path.dirname(place)) in allowed  # noqa: PTH120
        for place in places
    )


def module_path() -> list[str]:
    """Return the module path of our processes: that of this one, without the folder of a script or a notebook.

    Python puts that folder before its own library. It stays if the environment or the installation of a package
    names it.
    """
    implied = {os.path.realpath(folder) for folder in (_working_folder(), _script_folder()) if folder is not None}
    named = {os.path.realpath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path}
    package = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120
    library = os.path.realpath(os.path.dirname(os.__file__))  # noqa: PTH120
    places = [os.path.realpath(path) for path in sys.path]
    first = places.index(library) if library in places else len(places)
    unwanted = implied - named - {package}
    return [
        path
        for number, (path, place) in enumerate(zip(sys.path, places, strict=True))
        if path and not (number < first and place in unwanted)
    ]


def load(reference: str) -> Any:
    """Import the object that `module:name` names; a module that has changed since is loaded again.

    Raises:
        UserError: there is no such module or name, or it cannot be imported.
    """
    name, _, attribute = reference.partition(":")
    source = digest(reference)
    with _looking_where_allowed():
        try:
            module = sys.modules.get(name)
            if module is None or not _is_from(module, _spec(name.partition(".")[0])):
                _forget(name)
                module = importlib.import_module(name)
            elif _digests.get(name, source) != source:
                module = _read_again(module, attribute)
        # A user's module may raise anything when it is imported; a script may exit.
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{reference}: cannot be imported ({type(error).__name__}: {first_line(error, 'no message')})"
            ) from error
    _digests[name] = source
    if not hasattr(module, attribute):
        raise UserError(f"{reference}: the module {name!r} has no {attribute!r}")
    found = getattr(module, attribute)
    if not callable(found):
        raise UserError(f"{reference}: is a {type(found).__name__}; allowed: a function")
    return found


def digest(reference: str) -> str:
    """Return the SHA-256 of the source that `module:name` is in: a module's file, or all Python files of a package.

    Raises:
        UserError: there is no such module, or the user has not named it.
    """
    if not is_reference(reference):
        raise UserError(f"{reference!r}: is not allowed; allowed: a function in a module, as in 'module:name'")
    top = reference.partition(":")[0].partition(".")[0]
    if top in sys.stdlib_module_names or top in ("builtins", "__main__"):
        what = "is Python's own"
        if top == "__main__":
            what = "what a notebook or a script defines cannot be imported elsewhere"
        raise UserError(f"{reference}: {what}; save the function in a module of your own, as in 'module:name'")
    spec = _spec(top)
    if spec is None:
        raise UserError(f"{reference}: {_absent(top)}")
    if not _is_named(top, spec):
        raise UserError(
            f"{reference}: the module {top!r} is installed, and you have not named it; where you trust whoever wrote "
            f"this: imgcls_search.add_code({top!r}), or {VARIABLE}={top} for a command"
        )
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    files = [(path, path.relative_to(place)) for place in places for path in sorted(place.rglob("*.py"))]
    if not files and spec.origin is not None:
        files = [(Path(spec.origin), Path(Path(spec.origin).name))]
    found = hashlib.sha256()
    try:
        for path, name in files:
            found.update(f"{name.as_posix()}\0".encode() + path.read_bytes() + b"\0")
    except OSError as error:
        raise UserError(f"{reference}: {error.filename}: {error.strerror}") from error
    return found.hexdigest()


def _absent(top: str) -> str:
    here = any(Path(name).exists() for name in (f"{top}.py", top))
    near = f" (there is a {top} in the working folder, where nothing is looked for)" if here else ""
    return (
        f"no module {top!r} is installed or in a folder that was named{near}; name its folder: "
        f"imgcls_search.add_code('FOLDER'), or {VARIABLE}=FOLDER for a command"
    )


def _spec(top: str) -> ModuleSpec | None:
    """Find a module without importing it."""
    return _find(top, [*module_path(), *map(str, folders())])


def _find(top: str, path: list[str]) -> ModuleSpec | None:
    for finder in sys.meta_path:
        if finder in (BuiltinImporter, FrozenImporter):
            continue
        importlib.invalidate_caches()
        # Packages in editable installs have their own finders.
        found = PathFinder.find_spec(top, path) if finder is PathFinder else finder.find_spec(top, None)
        if found is not None and (finder is PathFinder or not _is_implied(found, path)):
            return found
    return None


def _is_implied(spec: ModuleSpec, path: list[str]) -> bool:
    """Tell whether a module is in a folder that is searched only because the program runs there."""
    implied = {os.path.realpath(place or ".") for place in sys.path} - {os.path.realpath(place) for place in path}
    return spec.origin is not None and os.path.realpath(os.path.dirname(spec.origin)) in implied  # noqa: PTH120


def _is_from(module: Any, spec: ModuleSpec | None) -> bool:
    """Tell whether an imported module comes from the place where it would be found now."""
    file = getattr(module, "__file__", None)
    if spec is None or file is None:
        return False
    places = [spec.origin] if spec.submodule_search_locations is None else list(spec.submodule_search_locations)
    return any(place is not None and Path(file).resolve().is_relative_to(Path(place).resolve()) for place in places)


def _read_again(module: ModuleType, attribute: str) -> ModuleType:
    """Load a module that has changed again, and return it."""
    name = module.__name__
    if "." in name or hasattr(module, "__path__"):
        # The change may be in another module of its package.
        _forget(name)
        return importlib.import_module(name)
    # Otherwise names that the source no longer defines would stay.
    vars(module).pop(attribute, None)
    return importlib.reload(module)


def _forget(name: str) -> None:
    top = name.partition(".")[0]
    for known in [known for known in sys.modules if known == top or known.startswith(f"{top}.")]:
        del sys.modules[known]


@contextlib.contextmanager
def _looking_where_allowed() -> Iterator[None]:
    """Search for modules only in allowed folders; afterwards the user's folders stay last, for imports in functions."""
    before = list(sys.path)
    own = [str(folder) for folder in folders()]
    allowed = module_path()
    sys.path[:] = [*allowed, *(folder for folder in own if folder not in allowed)]
    try:
        yield
    finally:
        sys.path[:] = [*before, *(folder for folder in own if folder not in before)]


def _working_folder() -> str | None:
    with contextlib.suppress(OSError):
        return str(Path.cwd())
    return None


def _script_folder() -> str | None:
    """Return the folder of the running script, or None if there is none."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return os.path.dirname(file) if file else None  # noqa: PTH120
