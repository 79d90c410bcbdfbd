"""Versions of what chooses among a policy's proposals, which change while robots are served.

A robot goes on with the version that its episode began with. The next episode begins with the
newest one. Each answer names its version in "steer".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from offline.types import Policy
from robots.serving.observations import Observations


@dataclass(frozen=True)
class Version:
    """What chooses, from some time on."""

    name: str
    """A counter and a hash, such as "2-1a2b3c4d"."""
    steer: Callable[[Policy], Any]
    """Puts it around a policy: see `robots.serving.proxy.Chooser`."""
    observations: Observations
    """What it observes of a robot's message."""


Newest = Callable[[], Version]
"""The version that an episode begins with now; called at the beginning of each."""
