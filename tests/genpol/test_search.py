"""Depth 2: against loops over the definition, on a line where depth 1 is blind, in EXPO's parts."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from genpol.agents.edit import Editor, EditPolicy
from genpol.agents.search import LookaheadScore
from genpol.policies import Architecture, ChunkPolicy
from genpol.select import argmax
from genpol.steer import Steered
from offline.spec import ActionSpec
from offline.td import Subset
from offline.value import ValueFunction
from offline.world_model import Prediction, StateLayout

H, GAMMA = 2, 0.9
SPEC = ActionSpec.from_bounds([-1.0], [1.0], chunk=H)
LAYOUT = StateLayout.of({"x": (1,)})
ARMS = torch.tensor([-0.8, -0.1, 0.3, 0.9])


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


class Fixed:
    """Proposes the same few constant chunks, or uniform ones, and keeps what it made."""

    spec = SPEC

    def __init__(self, arms: Tensor | None = ARMS) -> None:
        self.arms = arms
        self.made = torch.zeros(())

    def sample(self, obs, n, generator):
        rows = len(obs["x"])
        if self.arms is None:
            return 2 * torch.rand(rows, n, H, 1, generator=generator) - 1
        self.made = self.arms[:n] * 1
        return self.made[None, :, None, None].expand(rows, -1, H, 1)

    def commit(self, act): ...
    def reset(self): ...
    def keep(self, rows): ...


class Line:
    """x' = x + a + noise; reward and end by rule."""

    layout = LAYOUT

    def __init__(self, reward=lambda x: -x.abs(), ended=lambda x: x > 1e9, noise: float = 0.0):
        self.reward, self.ended, self.noise, self.rows = reward, ended, noise, []

    def predict(self, state, act, generator):
        self.rows.append(len(state))
        following = state + act
        if self.noise:
            following = following + self.noise * torch.randn(state.shape, generator=generator)
        x = following[:, 0]
        return Prediction(following, self.reward(x), self.ended(x))


class Slopes:
    """Q_e(x, chunk) = w_e x + c_e sum(chunk) - (x - goal)^2."""

    spec = SPEC

    def __init__(self, w=(0.0, 0.3), c=(0.0, -0.2), goal=1.5) -> None:
        self.w, self.c, self.goal = torch.tensor(w), torch.tensor(c), goal

    def encode(self, obs):
        return obs["x"]

    def score(self, x, act):
        far = (x - self.goal).square()
        state = self.w[:, None, None] * x[None] - far[None]
        return state + self.c[:, None, None] * act.sum((2, 3))[None]

    def __call__(self, obs, act):
        return self.score(self.encode(obs), act)


def lookahead(model=None, critic=None, *, draws=1, count=4, seed=0, **rest) -> LookaheadScore:
    ahead = Steered(Fixed(), critic or Slopes(), count, argmax(), check=False)
    return LookaheadScore(ahead, model or Line(), GAMMA, seeded(seed), draws=draws, **rest)


def at(*x: float) -> dict[str, Tensor]:
    return {"x": torch.tensor(x)[:, None]}


@pytest.mark.parametrize("draws", [1, 3])
def test_scores_against_loops(draws):
    """Three rows, four candidates, a noisy model that may end the episode at either step."""

    def noisy():
        return Line(ended=lambda x: x > 1.2, noise=0.4)

    critic, obs = Slopes(), at(-0.5, 0.4, 1.0)
    act = Fixed().sample(obs, 4, None) * torch.tensor([1.0, 0.5])[:, None]
    score = lookahead(noisy(), draws=draws, seed=3)
    found = score(obs, act)
    assert found.shape == (2, 3, 4)
    # The same noise, in the order of rows, candidates, draws; step by step.
    generator, total = seeded(3), torch.zeros(2, 3, 4)
    noise = [0.4 * torch.randn(3, 4, draws, generator=generator) for _ in range(H)]
    ends = 0
    for row in range(3):
        for k in range(4):
            for draw in range(draws):
                x, reward, ended = float(obs["x"][row]), 0.0, False
                for i in range(H):
                    x += float(act[row, k, i]) + float(noise[i][row, k, draw])
                    reward += GAMMA**i * -abs(x)
                    ended = x > 1.2
                    if ended:
                        break
                ends += ended
                value = torch.zeros(2)
                if not ended:
                    options = critic(at(x), Fixed().sample(at(x), 4, None))[:, 0]  # (E, N)
                    value = GAMMA**H * options[:, options.amin(0).argmax()]
                total[:, row, k] += (reward + value) / draws
    torch.testing.assert_close(found, total)
    assert 0 < ends < 12 * draws
    assert score.model.rows == [12 * draws] * H  # all in one batch


def test_depth_two_finds_what_depth_one_misses():
    """The critic values states rightly and actions not at all. Only where an action leads tells:
    the goal is to the right, but beyond 1.2 from here is a cliff."""
    critic, base = Slopes(w=(0.0,), c=(0.0,), goal=1.5), Fixed()
    obs = at(0.0)
    near = Steered(base, critic, 4, argmax(), check=False).decide(obs, seeded())
    assert near.scores.unique().numel() == 1 and int(near.chosen) == 0  # away from the goal

    def decide(model) -> float:
        score = lookahead(model, critic)
        return float(Steered(base, score, 4, argmax(), check=False).decide(obs, None).action[0, 0])

    assert decide(Line(reward=torch.zeros_like)) == pytest.approx(0.9)
    cliff = Line(reward=lambda x: -10.0 * (x > 1.2), ended=lambda x: x > 1.2)
    assert decide(cliff) == pytest.approx(0.3)


def test_nothing_follows_a_termination():
    """Not even where the critic thinks the world of what lies behind it."""

    class Deluded(Slopes):
        def score(self, x, act):
            return super().score(x, act) + torch.where(x[None] > 1.2, torch.inf, 0.0)

    model = Line(reward=torch.ones_like, ended=lambda x: x > 1.2)
    act = torch.tensor([0.3, 0.05])[None, :, None, None].expand(1, 2, H, 1)
    found = lookahead(model, Deluded())(at(1.0), act)
    assert found[0, 0, 0] == 1.0  # one step's reward
    assert found[0, 0, 1] == pytest.approx(1 + GAMMA - GAMMA**2 * 0.4**2, rel=1e-5)  # at 1.1


def test_not_ready_is_depth_one():
    known = [False]
    score = lookahead(ready=lambda: known[0])
    obs, act = at(0.2, -1.0), Fixed().sample(at(0.2, -1.0), 4, None)
    before = score.generator.get_state()
    assert torch.equal(score(obs, act), Slopes()(obs, act))
    assert score.model.rows == [] and torch.equal(score.generator.get_state(), before)
    known[0] = True
    assert not torch.equal(score(obs, act), Slopes()(obs, act))


def test_a_saved_generator_repeats_the_scores():
    obs, act = at(0.2, -1.0), Fixed().sample(at(0.2, -1.0), 4, None)
    score = lookahead(Line(noise=1.0), draws=2)
    state = score.generator.get_state()
    first, other = score(obs, act), score(obs, act)
    score.generator.set_state(state)
    assert torch.equal(score(obs, act), first) and not torch.equal(first, other)


def test_a_policy_may_keep_what_it_makes():
    """Deciding scores in inference mode; what is proposed in s' can still be learnt from."""
    base = Fixed()
    ahead = Steered(base, Slopes(), 4, argmax(), check=False)
    score = LookaheadScore(ahead, Line(), GAMMA, seeded())
    decision = Steered(Fixed(), score, 4, argmax(), check=False).decide(at(0.0), None)
    assert not base.made.is_inference() and not decision.action.is_inference()


def expo_parts(seed: int = 0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        value = ValueFunction(SPEC, {"x": (1,)}, hidden=(16, 16), ensemble=4, heads="stacked")
        sizes = Architecture(features=16, encoder_layers=1, width=16, denoising_steps=2)
        base = ChunkPolicy("flow", SPEC, {"x": (1,)}, architecture=sizes).eval()
        edit = EditPolicy(value.encoder.dim, H, (16,), scale=0.3, clip=True)
    return value.eval().requires_grad_(False), base, edit


def steered(value, base, edit, heads: int, seed: int, score=None) -> Steered:
    few = Subset(value, heads, seeded(seed))
    editor = Editor(edit, few, 1)
    if score is not None:
        few.shared = False  # nobody else encodes with it
    return Steered(base, score or few, 3, argmax(), edit=editor, check=False)


@pytest.mark.parametrize("heads", [2, 4])
def test_with_the_parts_of_expo(heads):
    """Base candidates and edits, here and there; every score is that of its choice there."""
    value, base, edit = expo_parts()
    ahead = steered(value, base, edit, heads, seed=1)
    score = LookaheadScore(ahead, Line(), GAMMA, seeded(2))
    policy = steered(value, base, edit, heads, seed=3, score=score)
    obs = at(0.3, -0.7, 1.1)
    decision = policy.decide(obs, seeded(4))
    assert decision.heads.shape == (heads, 3, 6) and decision.action.shape == (3, H, 1)
    torch.testing.assert_close(decision.scores, decision.heads.amin(0))
    assert torch.equal(decision.chosen, decision.scores.argmax(-1))
    # again, with parts of the same seeds, for the candidates that were scored
    ahead, act = steered(value, base, edit, heads, seed=1), decision.candidates
    following = obs["x"][:, None] + act[:, :, 0], obs["x"][:, None] + act.sum(2)
    reward = -(following[0].abs() + GAMMA * following[1].abs())[..., 0]
    states = following[1].repeat_interleave(4, dim=1).view(-1, 1)
    there = ahead.decide({"x": states}, seeded(2))
    best = there.heads.gather(2, there.chosen.expand(heads, -1)[..., None]).view(heads, 3, 6, 4)
    torch.testing.assert_close(decision.heads, reward + GAMMA**H * best.mean(-1))


def test_a_better_model_and_a_worse_critic():
    """Random proposals, a critic that only knows states: depth 2 takes chunks nearer the goal."""
    critic, base = Slopes(w=(0.0, 0.0), c=(0.0, 0.0), goal=1.0), Fixed(arms=None)
    ahead = Steered(base, critic, 8, argmax(), check=False)
    score = LookaheadScore(ahead, Line(torch.zeros_like, noise=0.05), GAMMA, seeded(1))
    obs, misses = {"x": torch.zeros(64, 1)}, []
    for scored in (critic, score):
        act = Steered(base, scored, 8, argmax(), check=False).decide(obs, seeded(0)).action
        misses.append(float((act.sum((1, 2)) - 1).abs().mean()))
    assert misses[0] > 0.8 and misses[1] < 0.25
