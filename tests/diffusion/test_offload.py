"""Parts that wait elsewhere are moved there and back around their calls, and nowhere else."""

from __future__ import annotations

import functools

import pytest
import torch
from family_images import SIZES, policy_of
from tiny_families import tiny

from diffusion.errors import InputError
from diffusion.loading import prepare_pipeline
from diffusion.offload import Offload, networks_in, parse_offload
from diffusion.pipelines import ImagePolicy
from diffusion.rewards.reward import as_reward

CARD = torch.device("cuda")  # nothing is moved there: `moves` stands in for `Module.to`


@pytest.fixture
def moves(monkeypatch) -> list[tuple[str, str]]:
    """Which network went where, in order, and what was called in between; none really moves."""
    seen: list[tuple[str, str]] = []
    plain = torch.nn.Module.to

    def to(self, *args, **kwargs):
        if args and str(args[0]) in ("cpu", "cuda"):
            seen.append((type(self).__name__, str(args[0])))
            return self
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "to", to)
    return seen


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("none", set()),
        ("all", {"encoders", "vae", "rewards"}),
        ("vae", {"vae"}),
        ("rewards, encoders", {"encoders", "rewards"}),
    ],
)
def test_what_the_option_names(text, parts):
    assert parse_offload(text) == parts


@pytest.mark.parametrize("text", ["", "vea", "all,vae", "none,vae", "vae,", "x" * 9999])
def test_other_names_are_one_line(text):
    with pytest.raises(InputError, match="--offload .*expected none, all, or some of") as error:
        parse_offload(text)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)
    if text == "vea":
        assert 'Did you mean "vae"?' in str(error.value)


def test_on_a_cpu_nothing_moves(moves):
    offload = Offload(parse_offload("all"), "cpu")
    with offload.called("encoders", [torch.nn.Linear(1, 1)]):
        pass
    offload.rest("vae", [torch.nn.Linear(1, 1)])
    reward = as_reward(lambda images, prompts: images.mean((1, 2, 3)), "mean")
    assert moves == [] and offload.reward(reward) is reward


def test_encoders_are_on_the_card_while_prompts_are_encoded(moves, monkeypatch):
    policy = policy_of("sd3")
    policy.offload = Offload({"encoders"}, CARD)
    plain = policy.family.encode
    monkeypatch.setattr(
        policy.family, "encode", lambda *args: moves.append(("encode", "")) or plain(*args)
    )
    moves.clear()
    policy.encode(["a cat", "two"])
    two = "CLIPTextModelWithProjection"
    assert moves == [(two, "cuda")] * 2 + [("encode", "")] + [(two, "cpu")] * 2
    moves.clear()
    policy.decode(torch.zeros(1, *policy.latent_shape))
    assert moves == []


def test_the_autoencoder_is_on_the_card_while_it_works(moves):
    policy = policy_of("sd3")
    policy.offload = Offload({"vae"}, CARD)
    moves.clear()
    images = policy.decode(torch.zeros(3, *policy.latent_shape), batch=1)
    assert moves == [("AutoencoderKL", "cuda"), ("AutoencoderKL", "cpu")]
    policy.encode_images(images)
    assert moves == [("AutoencoderKL", "cuda"), ("AutoencoderKL", "cpu")] * 2
    moves.clear()
    with pytest.raises(RuntimeError):  # an error leaves it where it waits, too
        policy.decode(torch.zeros(1, 7, 3, 3))
    assert moves == [("AutoencoderKL", "cuda"), ("AutoencoderKL", "cpu")]
    policy.encode(["a cat"])
    assert len(moves) == 2


def test_what_waits_is_never_put_on_the_card_at_the_start(moves, monkeypatch):
    pipe = prepare_pipeline(tiny("sd3"))
    monkeypatch.setattr(ImagePolicy, "_place", functools.partialmethod(_placed_on_a_card))
    moves.clear()
    ImagePolicy(pipe, guidance_scale=1.0, train="nothing", offload=["encoders"], **SIZES["sd3"])
    assert ("SD3Transformer2DModel", "cuda") in moves and ("AutoencoderKL", "cuda") in moves
    assert ("CLIPTextModelWithProjection", "cuda") not in moves


def _placed_on_a_card(self, device, plain=ImagePolicy._place):
    self.offload = Offload({"encoders"}, CARD)
    plain(self, "cuda")


class Judge:
    """A reward that holds a network."""

    def __init__(self) -> None:
        self.parts = {"network": torch.nn.Linear(3, 1)}

    def __call__(self, images, prompts):
        return self.parts["network"](images.mean((2, 3)))[:, 0].detach()


def judge_of(network, images, prompts):
    return network(images.mean((2, 3)))[:, 0].detach()


def closure():
    network = torch.nn.Linear(3, 1)

    def judge(images, prompts):
        return network(images.mean((2, 3)))[:, 0].detach()

    return judge


FORMS = {
    "object": Judge,
    "method": lambda: Judge().__call__,
    "partial": lambda: functools.partial(judge_of, torch.nn.Linear(3, 1)),
    "closure": closure,
    "network": lambda: type("Net", (torch.nn.Linear,), {"forward": lambda self, i, p: i.sum()})(
        1, 1
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_networks_of_a_reward_are_found(form):
    assert len(networks_in(FORMS[form]())) == 1


def test_networks_that_nothing_holds_are_not_looked_for():
    assert networks_in(lambda images, prompts: images) == []
    assert networks_in([torch, {"a": torch.nn.Linear}, "x" * 99, None]) == []
    loop: list = []
    loop.append(loop)
    assert networks_in(loop) == []


def test_rewards_are_on_the_card_while_they_judge(moves):
    plain = as_reward(Judge(), "judge")
    moves.clear()
    offload = Offload({"rewards"}, CARD)
    reward = offload.reward(plain)
    assert moves == [("Linear", "cpu")]  # it was loaded on the card
    moves.clear()
    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(reward(images, ["a", "b"]), plain(images, ["a", "b"]))
    assert moves == [("Linear", "cuda"), ("Linear", "cpu")]
    reward.judge(images, ["a", "b"])
    assert len(moves) == 4


def test_the_names_of_shipped_rewards_hold_their_networks(tmp_path):
    """CLIP's is in an object in a partial function in what adapts it."""
    from diffusion.rewards.clip import ClipEncoder, clip_score

    encoder = ClipEncoder.__new__(ClipEncoder)
    encoder.model, encoder._texts = torch.nn.Linear(1, 1), {}
    reward = as_reward(functools.partial(clip_score, encoder), "clip")
    assert networks_in(reward) == [encoder.model]
