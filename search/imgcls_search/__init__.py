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
    from imgcls_search.api.backbones import Backbones, backbones, weights
    from imgcls_search.api.checking import check
    from imgcls_search.api.code import add_code
    from imgcls_search.api.comparing import Comparison, compare
    from imgcls_search.api.drafting import Draft, init
    from imgcls_search.api.ensembles import Ensemble
    from imgcls_search.api.housekeeping import clean
    from imgcls_search.api.inspecting import inspect
    from imgcls_search.api.language import families, options, schema, shipped_spaces
    from imgcls_search.api.merging import merge
    from imgcls_search.api.model import Model, Predictions, load_model
    from imgcls_search.api.planning import Plan, plan
    from imgcls_search.api.pretraining import pretrain
    from imgcls_search.api.preview import Preview, augment_preview
    from imgcls_search.api.replaying import Replays
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
    "Backbones",
    "BuildError",
    "CheckpointError",
    "ClusterError",
    "Comparison",
    "CutError",
    "DataError",
    "DeployError",
    "DeviceError",
    "Draft",
    "Ensemble",
    "Model",
    "NoResultError",
    "Plan",
    "Predictions",
    "Preview",
    "Replays",
    "Report",
    "SearchError",
    "SpaceError",
    "Study",
    "StudyError",
    "Trial",
    "UserError",
    "add_code",
    "augment_preview",
    "auto",
    "backbones",
    "check",
    "clean",
    "compare",
    "evaluate",
    "families",
    "init",
    "inspect",
    "load_model",
    "merge",
    "open_study",
    "options",
    "plan",
    "pretrain",
    "run",
    "schema",
    "shipped_spaces",
    "studies",
    "train",
    "weights",
]

_PLACES = {
    "api.automatically": ("AutoResult", "auto"),
    "api.backbones": ("Backbones", "backbones", "weights"),
    "api.checking": ("check",),
    "api.code": ("add_code",),
    "api.comparing": ("Comparison", "compare"),
    "api.drafting": ("Draft", "init"),
    "api.ensembles": ("Ensemble",),
    "api.housekeeping": ("clean",),
    "api.inspecting": ("inspect",),
    "api.language": ("families", "options", "schema", "shipped_spaces"),
    "api.merging": ("merge",),
    "api.model": ("Model", "Predictions", "load_model"),
    "api.planning": ("Plan", "plan"),
    "api.pretraining": ("pretrain",),
    "api.preview": ("Preview", "augment_preview"),
    "api.replaying": ("Replays",),
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
