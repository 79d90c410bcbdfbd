"""A one-step student: what it learns from a chain, and that it is a policy like any other."""

from __future__ import annotations

import pytest
import torch
from toy_bandit import SHAPES, SPEC, base_policy, demonstrations, generator, states

from genpol.agents.imitation import Imitation
from genpol.policies.architecture import Architecture
from genpol.policies.policy import ChunkPolicy, load_policy
from genpol.policies.student import Student, distance
from offline.errors import InputError
from offline.types import HasMode, Policy


def test_the_loss_is_the_distance_to_what_the_chain_makes_of_the_same_noise():
    teacher = base_policy()
    student = Student.of(teacher)
    obs = states(7, generator())
    noise = torch.randn(7, 1, 2, generator=generator(3))
    loss = student.distill_loss(obs, teacher, generator(3))
    by_hand = ((student(obs, noise) - teacher.decode(obs, noise)) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(loss, by_hand)
    loss.sum().backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_distance_by_hand():
    act = torch.tensor([[[[0.0, 2.0]]], [[[1.0, 1.0]]]])
    assert distance(act, torch.ones(2, 1, 1, 2)).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_it_learns_which_noise_leads_to_which_arm(kind):
    teacher = Imitation(base_policy(kind=kind), lr=2e-3, ema=0.99)
    draw = generator(1)
    for _ in range(300):
        teacher.update(demonstrations(64, draw), draw)
    student = Student.of(teacher.average)
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3, fused=True)
    for _ in range(500):
        loss = student.distill_loss(states(64, draw), teacher.average, draw).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    obs = states(500, draw)
    noise = torch.randn(500, 4, 2, generator=draw)
    ours, theirs = student.decode(obs, noise), teacher.average.decode(obs, noise)
    same_arm = (ours.mean((-1, -2)) > 0) == (theirs.mean((-1, -2)) > 0)
    assert same_arm.float().mean() > 0.95
    assert (ours - theirs).square().mean().sqrt() < 0.12
    assert theirs.mean((-1, -2)).std() > 0.4  # of both arms


def test_it_is_a_policy_that_can_be_saved(tmp_path):
    student = Student.of(base_policy())
    assert isinstance(student, Policy)
    assert isinstance(student, HasMode)
    obs = states(5, generator())
    act = student.sample(obs, 3, generator(2))
    assert act.shape == (5, 3, 1, 2)
    assert act.abs().max() <= 1
    mode = student.mode(obs)
    assert torch.equal(mode, student.decode(obs, torch.zeros(5, 1, 2))[:, 0])
    student.save(tmp_path)
    loaded = load_policy(tmp_path)
    assert loaded.kind == "student"
    assert torch.equal(loaded.sample(obs, 3, generator(2)), act)


def test_it_starts_from_the_encoder_of_its_teacher():
    teacher = base_policy()
    teacher.encoder.normalizer.mean.fill_(0.3)
    obs = states(5, generator())
    assert torch.equal(Student.of(teacher).encode(obs), teacher.encode(obs))


def test_a_teacher_with_the_published_network_has_no_encoder_to_start_from():
    sizes = Architecture(features=32, network="residual", denoising_steps=3)
    teacher = ChunkPolicy("flow", SPEC, SHAPES, architecture=sizes)
    student, obs = Student.of(teacher), states(5, generator())
    assert student.architecture.network == "factored"
    assert student.distill_loss(obs, teacher, generator()).shape == (5,)


def test_only_a_policy_can_teach_it():
    batch, student = demonstrations(4, generator()), Student.of(base_policy())
    with pytest.raises(InputError, match="one-step student cannot learn from actions"):
        Imitation(student, lr=1e-3, ema=0.99)
    with pytest.raises(InputError, match="one-step student cannot learn from actions"):
        student.loss(batch.obs, batch.act, generator())
    assert Imitation(student, lr=0, ema=0.99).frozen
