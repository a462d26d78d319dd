"""How a call of `run` ends, and what each ending means for its study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Ending = Literal["finished", "exhausted", "timeout", "epochs", "target", "gain", "interrupted", "terminated"]
"""`finished`: all trials are done; `exhausted`: no configuration is left to try; `interrupted`, `terminated`: someone
stopped it. All others are in `SPENT` or `REACHED`."""

SPENT: Mapping[str, str] = {"timeout": "study.timeout", "epochs": "study.max_epochs"}
"""Endings that stop a study until a setting, the value here, is raised."""

REACHED: Mapping[str, str] = {"target": "study.target", "gain": "study.min_gain"}
"""Endings that finish a study because a setting, the value here, says that it is good enough."""

LIMITS = (*SPENT.values(), *REACHED.values())
"""Settings that end a search before all its trials are done; each may change between runs."""


def setting_of(ending: str) -> str:
    """Return the setting that ended a run; empty for an ending that no setting causes."""
    settings = {**SPENT, **REACHED}
    return settings.get(ending, "")
