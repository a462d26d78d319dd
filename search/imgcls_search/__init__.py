"""Hyperparameter and architecture search for image classification.

    import imgcls_search as ic

    found = ic.auto("photos", time="1h")
    model = ic.load_model(found.folder)
    model.predict("more-photos").frame()

Every name below is imported when it is first used: importing the package imports neither torch nor Optuna.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imgcls_search.api.automatically import AutoResult, auto
    from imgcls_search.api.checking import check
    from imgcls_search.api.code import add_code
    from imgcls_search.api.drafting import Draft, init
    from imgcls_search.api.inspecting import inspect
    from imgcls_search.api.model import Model, Predictions, load_model
    from imgcls_search.api.report import Report
    from imgcls_search.api.searching import run
    from imgcls_search.api.study import Study, open_study, studies
    from imgcls_search.api.trainings import evaluate, train
    from imgcls_search.api.trial import Trial
    from imgcls_search.errors import (
        BuildError,
        CheckpointError,
        ClusterError,
        CutError,
        DataError,
        DeployError,
        DeviceError,
        NoResultError,
        SearchError,
        SpaceError,
        StudyError,
        UserError,
    )

__version__ = "0.1.0"

__all__ = [
    "AutoResult",
    "BuildError",
    "CheckpointError",
    "ClusterError",
    "CutError",
    "DataError",
    "DeployError",
    "DeviceError",
    "Draft",
    "Model",
    "NoResultError",
    "Predictions",
    "Report",
    "SearchError",
    "SpaceError",
    "Study",
    "StudyError",
    "Trial",
    "UserError",
    "add_code",
    "auto",
    "check",
    "evaluate",
    "init",
    "inspect",
    "load_model",
    "open_study",
    "run",
    "studies",
    "train",
]

_PLACES = {
    "api.automatically": ("AutoResult", "auto"),
    "api.checking": ("check",),
    "api.code": ("add_code",),
    "api.drafting": ("Draft", "init"),
    "api.inspecting": ("inspect",),
    "api.model": ("Model", "Predictions", "load_model"),
    "api.report": ("Report",),
    "api.searching": ("run",),
    "api.study": ("Study", "open_study", "studies"),
    "api.trainings": ("evaluate", "train"),
    "api.trial": ("Trial",),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
