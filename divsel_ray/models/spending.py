"""A spending limit that pending requests count against."""

from __future__ import annotations

import math
from threading import Condition

from divsel_ray.errors import JobError


class Ledger:
    """Tracks the cost so far and the highest possible cost of pending requests; thread-safe.

    Args:
        what: section of the configuration that sets `max_cost`, for messages.
        limit: highest total cost; None for no limit.
        spent: cost of earlier requests.
    """

    def __init__(self, what: str, limit: float | None, spent: float = 0.0) -> None:
        self.spent = spent
        self._what, self._limit = what, math.inf if limit is None else limit
        self._reserved, self._open = 0.0, 0
        self._changed = Condition()

    def reserve(self, worst: float) -> float:
        """Reserve the highest possible cost of a request, and return it.

        Waits for pending requests to settle if the limit leaves too little otherwise.

        Raises:
            JobError: the request could exceed the limit even with no other request pending.
        """
        with self._changed:
            while self.spent + self._reserved + worst > self._limit:
                if not self._open:
                    raise JobError(
                        f"{self._what}: the next request could exceed max_cost {self._limit:g}; {self.spent:.6g} is spent, and "
                        "paid answers are kept: raise max_cost and run the same command again"
                    )
                self._changed.wait()
            self._open += 1
            self._reserved += worst
        return worst

    def settle(self, reserved: float, cost: float) -> None:
        """Replace a reservation by the actual cost of the request."""
        with self._changed:
            self._open -= 1
            self._reserved = self._reserved - reserved if self._open else 0.0
            self.spent += cost
            self._changed.notify_all()
