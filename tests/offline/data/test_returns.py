import numpy as np
import pytest
from toy_data import episode

from offline.data.returns import chunk_rewards, online_reward, step_rewards
from offline.errors import InputError

NEVER = -1 / (1 - 0.5)


def test_success_counts_the_steps_to_it():
    steps = step_rewards(episode(3, success=True), 0.5)
    np.testing.assert_allclose(steps.rewards, [-1, -1, 0])
    np.testing.assert_allclose(steps.returns, [-1.5, -1, 0])
    assert steps.ended  # although the dataset says terminated=False


def test_a_failure_is_worth_never_succeeding():
    steps = step_rewards(episode(3, success=False), 0.5)
    np.testing.assert_allclose(steps.returns, [NEVER] * 3)
    np.testing.assert_allclose(steps.rewards, [-1, -1, -1])
    assert not steps.ended


def test_ending_early_by_failing_is_no_better_than_failing_on():
    steps = step_rewards(episode(3, success=False, terminated=True), 0.5)
    np.testing.assert_allclose(steps.rewards, [-1, -1, NEVER])
    np.testing.assert_allclose(steps.returns, [NEVER] * 3)


def test_chunks_of_a_success_are_padded_and_end():
    chunks = chunk_rewards(episode(4, success=True), 2, 0.5)
    # steps: -1 -1 -1 0; chunks start at every step, the last two reach the end
    np.testing.assert_allclose(chunks.rewards, [-1.5, -1.5, -1, 0])
    np.testing.assert_allclose(chunks.discounts, [0.25, 0.25, 0, 0])
    np.testing.assert_allclose(chunks.returns, [-1.75, -1.5, -1, 0])


def test_chunks_that_reach_past_a_time_limit_are_dropped():
    chunks = chunk_rewards(episode(4, success=False), 2, 0.5)
    np.testing.assert_allclose(chunks.rewards, [-1.5] * 3)
    np.testing.assert_allclose(chunks.discounts, [0.25] * 3)  # the last one bootstraps too
    np.testing.assert_allclose(chunks.returns, [NEVER] * 3)


def test_a_chunk_longer_than_the_episode():
    chunks = chunk_rewards(episode(2, success=True), 4, 0.5)
    np.testing.assert_allclose(chunks.rewards, [-1, 0])
    np.testing.assert_allclose(chunks.discounts, [0, 0])
    assert len(chunk_rewards(episode(2, success=False), 4, 0.5)) == 0


def test_every_chunk_of_a_success_is_consistent_with_its_return():
    """R + discount * G' = G: what the TD target converges to is the Monte-Carlo return."""
    chunks = chunk_rewards(episode(9, success=True), 4, 0.9)
    following = np.concatenate([chunks.returns[4:], np.zeros(4)])
    np.testing.assert_allclose(
        chunks.rewards + chunks.discounts * following, chunks.returns, rtol=1e-5
    )


def test_the_same_for_failures():
    chunks = chunk_rewards(episode(9, success=False), 4, 0.9)
    np.testing.assert_allclose(
        chunks.rewards + chunks.discounts * chunks.returns, chunks.returns, rtol=1e-5
    )


def test_rewards_of_the_dataset():
    chunks = chunk_rewards(episode(3, terminated=True), 2, 0.5, "dataset")  # 1 2 3
    np.testing.assert_allclose(chunks.rewards, [2, 3.5, 3])
    np.testing.assert_allclose(chunks.discounts, [0.25, 0, 0])
    np.testing.assert_allclose(chunks.returns, [2.75, 3.5, 3])


def test_unknown_success_is_refused():
    with pytest.raises(InputError, match="which episodes succeeded"):
        chunk_rewards(episode(3), 2, 0.5)


def test_zero_one_pays_success_alone():
    steps = step_rewards(episode(3, success=True), 0.5, "zero-one")
    np.testing.assert_allclose(steps.rewards, [0, 0, 1])
    np.testing.assert_allclose(steps.returns, [0.25, 0.5, 1])
    assert steps.ended


@pytest.mark.parametrize("terminated", [False, True])
def test_zero_one_gives_a_failure_nothing(terminated):
    steps = step_rewards(episode(3, success=False, terminated=terminated), 0.5, "zero-one")
    assert not steps.rewards.any() and not steps.returns.any()
    assert steps.ended is terminated


def test_zero_one_in_chunks():
    chunks = chunk_rewards(episode(4, success=True), 2, 0.5, "zero-one")
    np.testing.assert_allclose(chunks.rewards, [0, 0, 0.5, 1])
    np.testing.assert_allclose(chunks.discounts, [0.25, 0.25, 0, 0])
    np.testing.assert_allclose(chunks.returns, [0.125, 0.25, 0.5, 1])


def test_zero_one_needs_success_too():
    with pytest.raises(InputError, match="which the zero-one reward needs"):
        chunk_rewards(episode(3), 2, 0.5, "zero-one")


@pytest.mark.parametrize("kind", ["sparse", "zero-one", "dataset"])
def test_scale_multiplies_rewards_and_returns_alone(kind):
    plain = chunk_rewards(episode(5, success=True), 2, 0.9, kind)
    scaled = chunk_rewards(episode(5, success=True), 2, 0.9, kind, scale=3.0)
    np.testing.assert_allclose(scaled.rewards, 3 * plain.rewards, rtol=1e-6)
    np.testing.assert_allclose(scaled.returns, 3 * plain.returns, rtol=1e-6)
    np.testing.assert_array_equal(scaled.discounts, plain.discounts)


@pytest.mark.parametrize("kind", ["sparse", "zero-one", "dataset"])
@pytest.mark.parametrize(("success", "terminated"), [(True, True), (False, True), (False, False)])
def test_a_step_online_is_paid_as_in_a_dataset(kind, success, terminated):
    recorded = episode(4, success=success, terminated=terminated)
    online = [
        online_reward(kind, reward, success and last, terminated=terminated and last, discount=0.5)
        for reward, last in zip(recorded.rewards, [False, False, False, True], strict=True)
    ]
    np.testing.assert_allclose(online, step_rewards(recorded, 0.5, kind).rewards)


def test_a_step_online_by_hand():
    assert [online_reward("sparse", 9.0, won) for won in (False, True)] == [-1, 0]
    assert [online_reward("zero-one", 9.0, won) for won in (False, True)] == [0, 1]
    assert [online_reward("dataset", 9.0, won) for won in (False, True)] == [9, 9]
    assert online_reward("sparse", 9.0, False, terminated=True, discount=0.5) == NEVER
    with pytest.raises(ValueError, match="needs the discount"):
        online_reward("sparse", 0.0, False, terminated=True)
