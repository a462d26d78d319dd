"""What long work calls to show how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with the number of items that are done, and the total."""

WorkProgress = Callable[[str, int, int], None]
"""Called with a description of the work, the number of items that are done, and the total."""

ShowStep = Callable[[str, int, int], None]
"""Called with a description of the step that begins, its number, and the number of steps."""

Say = Callable[[str], None]
"""Shows a line to the user."""
