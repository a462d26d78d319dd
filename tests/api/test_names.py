"""What `import imgcls_search` offers, and what it costs."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys

import imgcls_search as ic
import pytest
from imgcls_search import errors

NAMES = {
    *("AutoResult", "Backbones", "Comparison", "Draft", "Ensemble", "Model", "Plan", "Predictions", "Preview"),
    *("Replays", "Report", "Study", "Trial"),
    *("add_code", "augment_preview", "auto", "backbones", "check", "clean", "compare", "evaluate", "families", "init"),
    *("inspect", "load_model", "merge", "open_study", "options", "plan", "pretrain", "run", "schema"),
    *("shipped_spaces", "studies", "train", "weights"),
    *("BuildError", "CheckpointError", "ClusterError", "CutError", "DataError", "DeployError", "DeviceError"),
    *("NoResultError", "SearchError", "SpaceError", "StudyError", "UserError"),
}


def test_public_names_are_these() -> None:
    assert set(ic.__all__) == NAMES
    assert list(ic.__all__) == sorted(ic.__all__)
    assert set(dir(ic)) >= NAMES
    for name in NAMES:
        found = getattr(ic, name)
        assert found.__doc__, name
        assert found.__module__.startswith("imgcls_search."), name


def test_no_public_name_is_that_of_a_module() -> None:
    modules = {module.name for module in pkgutil.iter_modules(ic.__path__)}
    assert not modules & NAMES
    # Importing a subpackage sets its name in the package: that may take nothing away.
    for name in modules - {"__main__"}:
        importlib.import_module(f"imgcls_search.{name}")
    assert all(not isinstance(getattr(ic, name), type(sys)) for name in NAMES)


def test_errors_are_those_of_the_command_line() -> None:
    tree = [name for name in NAMES if name.endswith("Error")]
    assert all(getattr(ic, name) is getattr(errors, name) for name in tree)
    assert all(issubclass(getattr(ic, name), ic.SearchError) for name in tree)


def test_importing_imports_next_to_nothing() -> None:
    code = (
        "import sys, json; before = set(sys.modules); import imgcls_search as ic; "
        "ic.SearchError; ic.Study; ic.run; ic.auto; ic.load_model; print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = set(json.loads(done.stdout))
    heavy = {"torch", "optuna", "pandas", "rich", "typer", "sqlalchemy", "PIL", "sklearn", "yaml", "IPython"}
    assert not heavy & found
    bare = code.replace("ic.SearchError; ic.Study; ic.run; ic.auto; ic.load_model; ", "")
    done = subprocess.run([sys.executable, "-c", bare], capture_output=True, text=True, check=True)
    ours = [name for name in json.loads(done.stdout) if name.startswith("imgcls_search")]
    assert ours == ["imgcls_search"]
    # The others are of `typing` and `importlib`.
    assert len(json.loads(done.stdout)) < 25


def test_an_unknown_name_is_none() -> None:
    with pytest.raises(AttributeError, match="serch"):
        ic.serch  # type: ignore[attr-defined]  # noqa: B018
