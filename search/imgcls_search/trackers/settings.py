"""The settings of `study.log`, and the trackers that it may name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Annotated, Literal
from urllib.parse import urlsplit

from imgcls_search.config import expand_path
from imgcls_search.errors import UserError
from imgcls_search.signature import Arg


@dataclass(frozen=True, kw_only=True)
class TensorBoard:
    """Event files for TensorBoard, one folder a trial."""

    folder: Annotated[str | None, Arg("folder to write to; null: nothing is written", fixed=True)] = None


@dataclass(frozen=True, kw_only=True)
class MLflow:
    """Runs in MLflow, those of trials below that of the study."""

    uri: Annotated[
        str | None,
        Arg(
            "address of a server, or sqlite:///FILE; null: nothing is sent; names and passwords come from MLflow's own "
            "variables",
            fixed=True,
        ),
    ] = None
    experiment: Annotated[str | None, Arg("name of the experiment; default: the study's", fixed=True)] = None


@dataclass(frozen=True, kw_only=True)
class Wandb:
    """Runs in Weights & Biases, in a group of the study's name."""

    project: Annotated[str | None, Arg("name of the project; null: nothing is sent", fixed=True)] = None
    entity: Annotated[str | None, Arg("owner of the project; default: your login", fixed=True)] = None
    mode: Annotated[
        Literal["online", "offline"], Arg("offline: written to the folder, for `wandb sync`", fixed=True)
    ] = "online"
    folder: Annotated[str, Arg("where wandb keeps its files", fixed=True)] = "."


SETTINGS = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": Wandb}
"""The sections of `study.log`."""

SWITCHES = {"tensorboard": "folder", "mlflow": "uri", "wandb": "project"}
"""The setting without which a tracker is off."""

PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}


def wanted(log: Mapping[str, Mapping[str, str | None]]) -> dict[str, dict[str, str | None]]:
    """Return the trackers that a `study.log` section switches on, with their settings.

    Raises:
        UserError: the package of one is not installed, or an address holds a password.
    """
    found = {}
    for name, given in log.items():
        place = f"study.log.{name}.{SWITCHES[name]}"
        target = given.get(SWITCHES[name])
        if target is None:
            known = {each.name: each.default for each in fields(SETTINGS[name])}
            if more := [key for key, value in given.items() if value != known[key]]:
                raise UserError(
                    f"{place}: is not set, so nothing would be sent, but study.log.{name}.{more[0]} is; set both, or "
                    "neither"
                )
            continue
        if find_spec(PACKAGES[name]) is None:
            raise UserError(f"{place}: needs a package that is not installed; pip install 'imgcls-search[{name}]'")
        if urlsplit(target).password is not None:
            raise UserError(
                f"{place}: the address holds a password, which the study would keep; take it out and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        found[name] = dict(given)
        if (folder := given.get("folder")) is not None:
            found[name]["folder"] = str(expand_path(folder, f"study.log.{name}.folder").absolute())
    return found
