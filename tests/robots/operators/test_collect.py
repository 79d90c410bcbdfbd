"""Operators and episodes: what is stored is what was done, and the sloppy ones fail more."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from offline.errors import InputError
from robots.envs.make import make_env
from robots.operators.collect import (
    collect,
    collect_modes,
    collect_with,
    draw_order,
    draw_turns,
    habit,
    run_episode,
)
from robots.operators.experts import CLEAN, SLOPPY, Operator, ScriptedExpert, modes

pytest.importorskip("metaworld")

PICK_PLACE = "metaworld/pick-place-v3"
EPISODES, SEED = 12, 1000


@pytest.fixture(scope="module")
def env():
    return make_env(PICK_PLACE)


@pytest.fixture(scope="module")
def collected(env):
    return list(collect(env, EPISODES, 0.67, SEED))


def test_the_share_of_sloppy_operators_is_exact(collected):
    operators = [episode.meta["operator"] for episode in collected]
    assert operators.count("sloppy") == 8 and operators.count("clean") == 4
    assert sum(draw_order(120, 0.67, 0)) == 80
    assert not (draw_order(120, 0.67, 0) == draw_order(120, 0.67, 1)).all()
    for count, fraction in ((7, 0.0), (7, 1.0), (3, 0.5)):
        assert sum(draw_order(count, fraction, 5)) == round(count * fraction)


def test_clean_operators_succeed_and_sloppy_ones_mostly_do_not(env):
    clean = [episode.success for episode in collect(env, 8, 0.0, SEED)]
    sloppy = [episode.success for episode in collect(env, 14, 1.0, SEED)]
    assert np.mean(clean) >= 0.9
    assert np.mean(sloppy) <= 0.3


def test_an_episode_ends_at_success_or_at_the_limit(collected):
    assert {episode.success for episode in collected} == {True, False}  # failures are kept
    for episode in collected:
        episode.check("an episode")
        assert episode.terminated == episode.success
        assert len(episode) < 200 if episode.success else len(episode) == 200
        assert episode.language == "pick place"
        assert episode.meta["env"] == PICK_PLACE and episode.meta["horizon"] == 200


def test_the_stored_actions_replay_the_episode(env, collected):
    episode = collected[0]
    assert episode.actions.dtype == np.float32 and np.abs(episode.actions).max() <= 1
    actions = iter(episode.actions)
    again = run_episode(env, lambda obs: next(actions), episode.meta["seed"])
    assert np.array_equal(again.obs["state"], episode.obs["state"])
    assert np.array_equal(again.rewards, episode.rewards) and again.success == episode.success


def test_each_episode_depends_on_the_seed_and_its_index_only(env, collected):
    second = list(islice(collect(make_env(PICK_PLACE), EPISODES, 0.67, SEED), 2))[1]
    assert np.array_equal(second.actions, collected[1].actions)
    other = next(collect(env, EPISODES, 0.67, SEED + 1))
    assert not np.array_equal(other.obs["state"][0], collected[0].obs["state"][0])


def test_a_sloppy_operator_misjudges_the_object_by_one_bias_per_episode(collected):
    for episode in collected:
        size = np.hypot(*episode.meta["bias"])
        if episode.meta["operator"] == "sloppy":
            assert SLOPPY.bias_min <= size <= SLOPPY.bias_max
        else:
            assert size == 0
    sloppy = [e.meta["bias"] for e in collected if e.meta["operator"] == "sloppy"]
    assert len({tuple(bias) for bias in sloppy}) == len(sloppy)


def test_the_sloppy_operator_errs_by_habit_towards_one_side(collected):
    sloppy = [e.meta["bias"] for e in collected if e.meta["operator"] == "sloppy"]
    angles = [np.arctan2(y, x) for x, y in sloppy]
    assert np.ptp(np.unwrap(angles)) < 1e-9
    assert habit(0) != habit(1)


def test_each_mode_errs_towards_its_own_side():
    env = make_env(PICK_PLACE, max_steps=3)
    episodes = list(collect_modes(env, 6, SEED))
    by = {"mode-x+": [], "mode-y+": []}
    for episode in episodes:
        by[episode.meta["operator"]].append(episode.meta["bias"])
    assert [len(biases) for biases in by.values()] == [3, 3]
    for axis, biases in enumerate(by.values()):
        along, across = np.array(biases)[:, axis], np.array(biases)[:, 1 - axis]
        assert (0.01 <= along).all() and (along <= 0.035).all() and len(set(along)) == 3
        assert across == pytest.approx([0, 0, 0], abs=1e-9)
    again = list(collect_modes(env, 6, SEED))[3]
    assert np.array_equal(again.actions, episodes[3].actions)


def test_turns_are_shared_equally_in_an_order_of_the_seed():
    assert sorted(draw_turns(7, 2, 0).tolist()) == [0, 0, 0, 0, 1, 1, 1]
    assert draw_turns(20, 2, 0).tolist() != draw_turns(20, 2, 1).tolist()
    assert draw_turns(20, 2, 0).tolist() != [0, 1] * 10


@pytest.mark.parametrize(
    ("sides", "said"),
    [(("x+", "z+"), 'unknown side "z[+]"'), (("y-", "y-"), "that differ"), ((), "received none")],
)
def test_sides_that_make_no_modes(sides, said):
    with pytest.raises(InputError, match=said):
        modes(sides)


def test_the_bias_reaches_what_the_expert_sees(env):
    """Without noise, a biased expert acts as a careful one does on a displaced object."""
    obs, _ = env.reset(seed=3)
    biased = ScriptedExpert(PICK_PLACE, Operator("sloppy", 0, 0.03, 0.03), rng(1))
    exact = ScriptedExpert(PICK_PLACE, Operator("clean", 0), rng(1))
    moved = {"state": obs["state"].copy()}
    for start in (4, 22):  # the object now, and one step ago
        moved["state"][start : start + 2] += biased.bias.astype(np.float32)
    assert np.hypot(*biased.bias) == pytest.approx(0.03)
    assert biased(obs) == pytest.approx(exact(moved), abs=1e-5)
    assert np.abs(biased(obs) - exact(obs)).max() > 0.05


def test_noise_has_the_size_asked_for():
    env = make_env("metaworld/reach-v3")
    obs, _ = env.reset(seed=0)
    obs["state"][:3] = obs["state"][36:]  # at the goal the script asks for zeros: nothing clips
    expert = ScriptedExpert("metaworld/reach-v3", Operator("clean", 0.2), rng(0))
    drawn = np.stack([expert(obs) for _ in range(2000)])
    assert drawn.std(0) == pytest.approx(np.full(4, 0.2), rel=0.06)
    assert drawn.mean(0) == pytest.approx(np.zeros(4), abs=0.02)


def test_an_expert_leaves_the_observation_alone():
    env = make_env("metaworld/door-open-v3")  # its script writes into what it is given
    obs, _ = env.reset(seed=0)
    before = obs["state"].copy()
    ScriptedExpert("metaworld/door-open-v3", CLEAN, rng(0))(obs)
    assert np.array_equal(obs["state"], before)


def test_any_policy_can_collect():
    env = make_env("Hopper-v5", max_steps=30)
    episodes = list(collect_with(env, lambda obs: np.full(3, 5.0), 2, 0, operator="full speed"))
    assert [episode.success for episode in episodes] == [None, None]  # it has no such thing
    for episode in episodes:
        assert np.array_equal(episode.actions, np.ones_like(episode.actions))
        assert episode.terminated == (len(episode) < 30)  # it falls, or time is up
        assert episode.meta["operator"] == "full speed" and episode.obs["state"].shape[1] == 11
    assert episodes[0].meta["seed"] != episodes[1].meta["seed"]


@pytest.mark.parametrize(
    ("count", "fraction", "said"),
    [(0, 0.5, "at least 1 episode"), (3, 1.5, "between 0 and 1"), (3, -0.1, "between 0 and 1")],
)
def test_numbers_out_of_range(env, count, fraction, said):
    with pytest.raises(InputError, match=said):
        next(collect(env, count, fraction, 0))


def test_operators_that_make_no_sense():
    with pytest.raises(InputError, match="expected 0 <= least <= most"):
        Operator("sloppy", 0.1, bias_min=0.03, bias_max=0.01)
    with pytest.raises(InputError, match="noise is at least 0"):
        Operator("clean", -0.1)


def test_an_environment_without_an_expert_says_so():
    with pytest.raises(InputError, match="has no scripted expert"):
        next(collect(make_env("Hopper-v5"), 1, 0.0, 0))


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)
