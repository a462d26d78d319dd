"""Points that draws avoid: open trials without results, and configurations that were drawn before."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from imgcls_search.space import Space
from imgcls_search.strategy.encoding import Encoding
from imgcls_search.strategy.view import View
from imgcls_search.trial import Trial

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from imgcls_search.strategy.encoding import Array


class AvoidedPoints:
    """Configurations to avoid, as points of a space."""

    def __init__(self, space: Space, encoding: Encoding) -> None:
        """Start empty."""
        import numpy as np

        self.encoding = encoding
        self.is_finite = space.num_combinations() is not None
        self.waiting: Array = np.empty((0, len(encoding.parameters)))
        """Points of open trials without results; none if there is only one, as with one worker."""
        self.drawn: dict[int, bytes] = {}
        """The rows of trials of a finite space, by number."""
        self.rejected: frozenset[bytes] = frozenset()

    def look(self, view: View, shown: Collection[int], place: Callable[[Trial], list[float]]) -> None:
        """Update from the trials of a view; `shown` are the numbers of those with results."""
        import numpy as np

        waiting = [place(trial) for trial in view.trials if trial.is_open and trial.number not in shown]
        self.waiting = np.array(waiting if len(waiting) > 1 else []).reshape(-1, len(self.encoding.parameters))
        if not self.is_finite:
            return
        new = [trial for trial in view.trials if trial.number not in self.drawn]
        if new:
            self.drawn.update(
                zip((trial.number for trial in new), self._keys(np.array([place(trial) for trial in new])), strict=True)
            )
        refused = [self.encoding.point(each.params) for each in view.all_rejections()]
        self.rejected = frozenset(self._keys(np.array(refused))) if refused else frozenset()

    def are_taken(self, rows: Array) -> NDArray[np.bool_]:
        """Tell which rows are configurations that were drawn before; none are if the space is continuous."""
        import numpy as np

        if not self.is_finite:
            return np.zeros(len(rows), dtype=bool)
        taken = self.rejected.union(self.drawn.values())
        return np.array([key in taken for key in _keys_of(rows)], dtype=bool)

    def _keys(self, points: Array) -> list[bytes]:
        return _keys_of(self.encoding.rows_at(points))


def _keys_of(rows: Array) -> list[bytes]:
    # Rounded: a value on a step may come from either side of it.
    return [row.tobytes() for row in rows.round(9) + 0.0]
