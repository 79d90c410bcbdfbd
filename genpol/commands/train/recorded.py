"""What stands in for an environment that cannot be made: its description in a dataset.

With `--steps 0` an agent learns from stored data alone and needs no simulator. Where the dataset's
environment is not installed here, or the dataset names none, its shapes and bounds are taken from
the dataset, and the run is not evaluated.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from offline.data.joined import sources_of
from offline.data.training_data import training_spec

if TYPE_CHECKING:
    from offline.data.episodes import Episodes
    from offline.spec import ActionSpec


class RecordedEnv:
    """The shapes and bounds of an environment that a dataset was recorded in; it takes no steps.

    Args:
        episodes: the dataset.

    Raises:
        InputError: the dataset does not say what bounds its actions have.
    """

    has_success = True  # the dataset says of which episodes it knows
    language = None

    def __init__(self, episodes: Episodes) -> None:
        from gymnasium import spaces

        training_spec(episodes, "bounds", 1)  # refuses actions without bounds
        self.action_spec: ActionSpec = replace(episodes.spec, chunk=1)
        shapes = {key: tuple(shape) for key, shape in episodes.obs_shapes.items()}
        self.observation_space = spaces.Dict(
            {key: spaces.Box(-float("inf"), float("inf"), shape) for key, shape in shapes.items()}
        )

    def close(self) -> None:
        """Nothing to close."""


def require_proposals(episodes: Episodes | None) -> None:
    """Check that a dataset, or one of several, has a policy's proposals.

    Raises:
        InputError: none has.
    """
    from offline.errors import InputError

    sources = [] if episodes is None else [s.episodes for s in sources_of(episodes)]
    if not any(hasattr(source, "decisions") for source in sources):
        raise InputError(
            "--base recorded needs a recording of `genpol serve --record` in --data, which holds "
            "what the policy proposed; none of the datasets is one"
        )


class NoEnvs:
    """In place of the environments that training acts in, where it takes no steps."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a run without an environment asks it for {name}")

    def close(self) -> None:
        """Nothing to close."""
