"""How much a client may ask for in a second."""

from __future__ import annotations

import time

from offline.errors import InputError


class RateLimit:
    """At most `rate` of something per second for each name, in bursts of one second's worth.

    What is taken at once may be more than what is left: the next has to wait until that is made up
    for.

    Args:
        rate: per second.
        what: is counted, for the message.
    """

    def __init__(self, rate: float, what: str = "requests") -> None:
        self._rate, self._burst, self._what = rate, max(rate, 1.0), what
        self._left: dict[str, tuple[float, float]] = {}  # name -> (left, when)

    def take(self, name: str = "", now: float | None = None, *, number: int = 1) -> None:
        """Count `number` at the time `now` (seconds).

        Raises:
            InputError: it is too many; says how long to wait.
        """
        now = time.monotonic() if now is None else now
        left, when = self._left.get(name, (self._burst, now))
        left = min(self._burst, left + (now - when) * self._rate)
        if left < 1:
            self._left[name] = (left, now)
            raise InputError(
                f"rate limit: more than {self._rate:g} {self._what} per second; wait "
                f"{(1 - left) / self._rate:.2g} s, or raise the server's --rate-limit"
            )
        if len(self._left) > 1000:  # names that have been quiet for long need no entry
            self._left = {
                known: entry
                for known, entry in self._left.items()
                if entry[0] + (now - entry[1]) * self._rate < self._burst
            }
        self._left[name] = (left - number, now)
