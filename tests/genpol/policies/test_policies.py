"""Our own policies: what they learn, and what the interface promises."""

import json

import pytest
import torch
from torch import Generator
from toy_policies import CHUNK, DIM, SHAPES, SHARE, SPEC, make, modes, states, train

from genpol.policies.diffusion import DiffusionHead
from genpol.policies.policy import ChunkPolicy, load_policy
from offline.errors import InputError, SpecError
from offline.spec import ActionSpec
from offline.types import HasMode, Policy

KINDS = ("diffusion", "flow", "gaussian")


def generator(seed=0):
    return Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def learnt():
    """One policy of each chain, taught the two modes."""
    policies = {kind: make(kind) for kind in ("diffusion", "flow")}
    for policy in policies.values():
        train(policy, 800)
        policy.eval()
    return policies


# -- learning


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_both_modes_are_found_with_their_shares(learnt, kind):
    obs = states(40, seed=-1)
    act = learnt[kind].sample(obs, 100, generator())
    distance = (act[None] - modes(obs)[:, :, None]).abs().amax((-1, -2))  # (2, B, n)
    assert (distance.amin(0) < 0.2).float().mean() > 0.9  # few between the modes
    right = (distance[0] < distance[1]).float().mean()
    assert abs(right - SHARE) < 0.07


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_the_mode_is_one_of_the_modes(learnt, kind):
    obs = states(200, seed=-2)
    act = learnt[kind].mode(obs)
    right, left = ((act - mode).abs().amax((-1, -2)) < 0.2 for mode in modes(obs))
    assert right.float().mean() > 0.9  # the likelier one
    assert torch.equal(act, learnt[kind].mode(obs, generator()))  # no noise in it


def test_ddim_draws_from_the_same_distribution(learnt):
    policy = learnt["diffusion"]
    obs = states(40, seed=-3)
    policy.head.sampler = "ddim"
    act = policy.sample(obs, 100, generator())
    policy.head.sampler = "ddpm"
    distance = (act[None] - modes(obs)[:, :, None]).abs().amax((-1, -2))
    assert (distance.amin(0) < 0.2).float().mean() > 0.9
    assert abs((distance[0] < distance[1]).float().mean() - SHARE) < 0.1


def test_fewer_euler_steps_still_find_the_modes(learnt):
    head, obs = learnt["flow"].head, states(40, seed=-4)
    head.num_steps = 4
    act = learnt["flow"].sample(obs, 100, generator())
    head.num_steps = 10
    distance = (act[None] - modes(obs)[:, :, None]).abs().amax((-1, -2))
    assert (distance.amin(0) < 0.2).float().mean() > 0.8


def test_gaussian_learns_mean_and_state_dependent_std():
    def spread(obs):
        return 0.1 + 0.2 * (obs["state"][:, 2] > 0).float()

    def target(obs, draw):
        mean = modes(obs)[0] * 0.3
        return mean + spread(obs)[:, None, None] * torch.randn(mean.shape, generator=draw)

    policy = make("gaussian")
    train(policy, 500, target=target)
    obs = states(200, seed=-1)
    clear = obs["state"][:, 2].abs() > 0.2  # not at the edge between the two
    obs = {"state": obs["state"][clear]}
    assert (policy.mode(obs) - 0.3 * modes(obs)[0]).abs().mean() < 0.05
    std = policy.sample(obs, 400, generator()).std(1).mean((-1, -2))
    assert ((std / spread(obs)) - 1).abs().mean() < 0.15


# -- interface


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("rows", [1, 3])
def test_shapes_and_range(kind, n, rows):
    policy, obs = make(kind), states(rows, seed=0)
    assert isinstance(policy, Policy) and isinstance(policy, HasMode)
    policy.reset()
    act = policy.sample(obs, n, generator())
    assert act.shape == (rows, n, CHUNK, DIM) and act.abs().max() <= 1
    assert policy.mode(obs, None).shape == (rows, CHUNK, DIM)
    policy.commit(act[:, 0])
    policy.keep(torch.tensor([0]))
    loss = policy.loss(obs, act[:, 0], generator())
    assert loss.shape == (rows,) and loss.requires_grad
    assert policy.sample(obs, n, None).shape == act.shape
    (act * torch.ones(1, requires_grad=True)).sum().backward()  # usable in someone's loss


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_proposals(kind):
    policy, obs = make(kind), states(3, seed=0)
    first, again, other = (policy.sample(obs, 4, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert (first[:, 0] - first[:, 1]).abs().max() > 1e-3  # candidates differ


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_see_each_other(kind):
    policy, obs = make(kind), states(3, seed=0)
    changed = {"state": torch.cat([obs["state"][:2], 100 + obs["state"][2:]])}
    before, after = policy.sample(obs, 4, generator()), policy.sample(changed, 4, generator())
    assert torch.allclose(before[:2], after[:2], atol=1e-6)
    assert not torch.allclose(before[2], after[2], atol=1e-3)


def test_one_row_is_computed_like_many(learnt):
    """B = 1 takes a path with one axis less."""
    for policy in learnt.values():
        obs = states(1, seed=0)
        noise = torch.randn(10, 1, 6, CHUNK * DIM, generator=generator())
        with torch.no_grad():
            one, features = None, policy.encode(obs)
            if isinstance(policy.head, DiffusionHead):
                chain = policy.head.chains["ddpm"]
                one = policy.head(features, noise, chain)
                two = policy.head(features.repeat(2, 1), noise.repeat(1, 2, 1, 1), chain)
            else:
                one = policy.head.decode(features, noise[0])
                two = policy.head.decode(features.repeat(2, 1), noise[0].repeat(2, 1, 1))
        assert torch.allclose(one[0], two[0], atol=1e-5) and torch.allclose(two[0], two[1])


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_all_but_the_trunk_runs_once_for_32_candidates(kind):
    policy, rows = make(kind), {}

    def count(name):
        def hook(module, inputs, output):
            rows.setdefault(name, []).append(output.numel() // output.shape[-1])

        return hook

    policy.encoder.register_forward_hook(count("encoder"))
    policy.body.register_forward_hook(count("body"))
    policy.head.conditioner.register_forward_hook(count("conditioner"))
    policy.head.conditioner.time.register_forward_hook(count("time"))
    policy.head.trunk.register_forward_hook(count("trunk"))
    policy.sample(states(1, seed=0), 32, generator())
    assert rows == {
        "encoder": [1],
        "body": [1],
        "time": [10],  # all steps in one batch
        "conditioner": [10],
        "trunk": [32] * 10,
    }


# -- files and errors


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_is_the_same(kind, tmp_path):
    policy, obs = make(kind, seed=5, denoising_steps=4), states(2, seed=0)
    policy.encoder.normalizer.fit({"state": ([0.1, 0.2, 0.3], [1.0, 2.0, 3.0])})
    policy.meta["note"] = "kept"
    policy.eval().save(tmp_path / "run" / "policy")
    for folder in (tmp_path / "run", tmp_path / "run" / "policy"):  # of `genpol clone`, or itself
        loaded = load_policy(folder)
        assert loaded.spec == policy.spec and loaded.env == "toy/two-ways"
        assert loaded.obs_shapes == policy.obs_shapes and loaded.meta == policy.meta
        same = loaded.sample(obs, 3, generator()), policy.sample(obs, 3, generator())
        assert torch.equal(*same) and torch.equal(loaded.mode(obs), policy.mode(obs))
        assert not any(weight.requires_grad for weight in loaded.parameters())
    assert sorted(p.name for p in (tmp_path / "run" / "policy").iterdir()) == [
        "policy.json",
        "policy.safetensors",
    ]


def test_actions_without_bounds_are_not_clipped():
    spec = ActionSpec.from_bounds([-2.0, -1.0], [2.0, 1.0], chunk=CHUNK, scale="mean_std")
    policy = make("gaussian", spec=spec)
    assert policy.sample(states(8, seed=0), 50, generator()).abs().max() > 1
    assert not policy.bounded


def test_targets_outside_the_range_count_as_its_edge():
    policy, obs = make("flow"), states(2, seed=0)
    edge = torch.ones(2, CHUNK, DIM)
    assert torch.equal(policy.loss(obs, 3 * edge, generator()), policy.loss(obs, edge, generator()))


def test_wrong_input_is_named():
    policy, obs = make("diffusion"), states(2, seed=0)
    with pytest.raises(SpecError, match='the policy needs the observation "state"'):
        policy.sample({"puck": obs["state"]}, 1, None)
    with pytest.raises(SpecError, match='"state" has shape .*the policy was trained'):
        policy.mode({"state": obs["state"][:, :2]})
    with pytest.raises(SpecError, match="another --action-chunk"):
        policy.loss(obs, torch.zeros(2, CHUNK + 1, DIM), None)
    with pytest.raises(InputError, match="at least 1 candidate"):
        policy.sample(obs, 0, None)


def test_faulty_folders_are_one_line(tmp_path):
    good = make("flow").save(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    weights = (good / "policy.safetensors").read_bytes()

    def broken(name, *, config=None, data=weights):
        folder = tmp_path / name
        folder.mkdir()
        text = json.loads((good / "policy.json").read_text())
        (folder / "policy.json").write_text(json.dumps(text | (config or {})))
        if data is not None:
            (folder / "policy.safetensors").write_bytes(data)
        return folder

    cases = [
        (tmp_path / "absent", "there is no folder"),
        (tmp_path / "empty", "holds no policy"),
        (good / "policy.json", "is a file"),
        (broken("torn", data=weights[: len(weights) // 2]), "cannot read the policy"),
        (broken("alone", data=None), "policy.safetensors is missing"),
        (broken("alien", config={"format": "robomimic"}), 'not "genpol policy 1"'),
        (broken("kind", config={"kind": "wavelet"}), "cannot read the policy"),
        (broken("sizes", config={"architecture": {"width": 8}}), "of two models"),
    ]
    for folder, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            load_policy(folder)
        assert "\n" not in str(caught.value)


def test_images_are_encoded_once_a_row():
    shapes = {"camera": (32, 32, 3), "state": (3,), "language": (6,)}
    policy = make("flow", shapes=shapes).eval()
    obs = states(2, seed=0) | {
        "camera": torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=generator()),
        "language": torch.randn(2, 6, generator=generator()),
    }
    assert policy.sample(obs, 32, generator()).shape == (2, 32, CHUNK, DIM)
    assert policy.encoder.encoded_images == 2
    darker = obs | {"camera": obs["camera"] // 4}
    assert not torch.equal(policy.mode(darker), policy.mode(obs))
    assert isinstance(policy, ChunkPolicy) and set(SHAPES) < set(policy.obs_shapes)
    assert SPEC.chunk == CHUNK
