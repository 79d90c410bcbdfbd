"""Few files have a hand in one update of EXPO, so that a reader can follow it in one sitting."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import toy_bandit as toy

import genpol
from genpol.agents.expo import EXPO

ROOT = Path(genpol.__file__).parents[1]
# What networks compute inside is no part of the method; a reader takes their names for it.
NETWORKS = (
    "offline/networks/",
    "offline/draws.py",
    "offline/spec.py",
    "genpol/policies/flow.py",
    "genpol/policies/precision.py",
    "genpol/policies/trunk.py",
)


def files_of(run: Callable[[], None]) -> set[str]:
    """The kit's files whose functions `run` calls."""
    found = set()

    def seen(frame, event, arg):
        found.add(frame.f_code.co_filename)

    sys.setprofile(seen)
    try:
        run()
    finally:
        sys.setprofile(None)
    ours = [
        Path(file).relative_to(ROOT).as_posix() for file in found if file.startswith(f"{ROOT}/")
    ]
    return {file for file in ours if file.startswith(("genpol/", "offline/"))}


def test_one_update_opens_at_most_ten_files():
    learner, draw = EXPO(toy.base_policy(), toy.critic(), toy.settings()), toy.generator(1)
    toy.learn(learner, 1, draw=draw)
    batch = toy.transitions(32, draw)

    def update() -> None:
        learner.update_critic(batch, draw)
        learner.update_policy(batch, draw)

    files = {file for file in files_of(update) if not file.startswith(NETWORKS)}
    assert files == {
        "genpol/agents/expo.py",
        "genpol/agents/target_proposals.py",
        "genpol/agents/edit.py",
        "genpol/agents/imitation.py",
        "genpol/policies/policy.py",
        "genpol/steering/steered.py",
        "genpol/steering/select.py",
        "genpol/steering/action_units.py",
        "offline/critics/td.py",
        "offline/critics/value.py",
    }
    assert len(files) <= 10
