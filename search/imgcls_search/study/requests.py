"""Configurations that people ask a study to try: other commands add them, and only the run turns them into trials."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from imgcls_search.study.facts import Request
from imgcls_search.study.record import Record

KEY = "requests"


def make_request(params: Mapping[str, Any], by: str) -> Request:
    """Return a new request with the current time."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Request(id=uuid.uuid4().hex[:12], at=now, by=by, params=dict(params))


def asked_by_start(start: Sequence[Mapping[str, Any]]) -> list[Request]:
    """Return requests for start configurations that were added to a study after its first trials."""
    return [make_request(params, "start") for params in start]


def pending(record: Record) -> list[Request]:
    """Return the requests that are neither a trial yet nor refused, oldest first."""
    requests = record.facts.get("requests", [])
    if not requests:
        return []
    taken = {trial.request for trial in record.trials if trial.request is not None}
    return [request for request in requests if "refused" not in request and request["id"] not in taken]
