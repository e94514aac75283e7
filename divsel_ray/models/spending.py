"""A limit of money that requests under way count against."""

from __future__ import annotations

import math
from threading import Condition

from divsel_ray.errors import JobError


class Ledger:
    """What was spent, and what the requests under way may cost at most; safe for many threads.

    Args:
        what: section of the configuration that has the limit `max_cost`, for messages.
        limit: money; None for no limit.
        spent: money that was spent before.
    """

    def __init__(self, what: str, limit: float | None, spent: float = 0.0) -> None:
        self.spent = spent
        self._what, self._limit = what, math.inf if limit is None else limit
        self._reserved, self._open = 0.0, 0
        self._changed = Condition()

    def reserve(self, worst: float) -> float:
        """Set aside what a request can cost at most, and return it.

        Waits for requests under way to settle where they are what stands in the way.

        Raises:
            JobError: even with them settled, the request could exceed the limit.
        """
        with self._changed:
            while self.spent + self._reserved + worst > self._limit:
                if not self._open:
                    raise JobError(
                        f"{self._what}: the next request could exceed max_cost {self._limit:g}; {self.spent:.6g} is spent, and "
                        "what was paid for is kept: raise max_cost and run the same command"
                    )
                self._changed.wait()
            self._open += 1
            self._reserved += worst
        return worst

    def settle(self, reserved: float, cost: float) -> None:
        """Replace a reservation by what the request did cost."""
        with self._changed:
            self._open -= 1
            self._reserved = self._reserved - reserved if self._open else 0.0
            self.spent += cost
            self._changed.notify_all()
