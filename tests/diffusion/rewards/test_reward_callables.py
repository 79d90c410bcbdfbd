"""Reward functions as people have them: metadata, pictures, details, factories, async, groups."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading

import numpy as np
import pytest
import torch
from doc_blocks import ROOT, blocks
from PIL import Image

from diffusion import reward_function
from diffusion.errors import InputError, RewardError
from diffusion.prompts.prompt import Prompt
from diffusion.rewards import Reward, as_reward, judge, load_reward
from diffusion.rewards.checks import MOST_DETAILS

PROMPTS: list[str] = [Prompt("a cat", metadata={"text": "meow", "n": 2}), "a dog", "a bird"]


def images(count: int = 3) -> torch.Tensor:
    """Image k is all k/255."""
    return (torch.arange(count) / 255).view(-1, 1, 1, 1).expand(-1, 3, 4, 6).contiguous()


def ask(function, count: int = 3, **kw) -> Reward:
    return as_reward(function, "r", **kw).judge(images(count), PROMPTS[:count])


# --------------------------------------------------------------------------- metadata


class Callable3:
    def __call__(self, images, prompts, metadata):
        return [len(one) for one in metadata]


class Method:
    def score(self, images, prompts, meta):
        return [len(one) for one in meta]


def scaled(scale, images, prompts, metadata):
    return [scale * len(one) for one in metadata]


@pytest.mark.parametrize(
    "function",
    [
        lambda images, prompts, metadata: [len(one) for one in metadata],
        lambda a, b, anything: [len(one) for one in anything],
        lambda images, prompts, metadata=None: [len(one) for one in metadata],
        lambda images, prompts, scale=1.0, prompt_metadata=None: [len(m) for m in prompt_metadata],
        lambda images, prompts, *, metadata: [len(one) for one in metadata],
        lambda images, prompts, metadata, only_strict=True: [len(one) for one in metadata],
        Callable3(),
        Callable3,
        Method().score,
        functools.partial(scaled, 1),
    ],
)
def test_the_third_argument_is_the_metadata(function) -> None:
    assert ask(function).total.tolist() == [2, 0, 0]


def test_metadata_are_dicts_of_their_own() -> None:
    def spoil(images, prompts, metadata):
        assert metadata == [{"text": "meow", "n": 2}, {}, {}]
        metadata[0].clear()
        return [0, 0, 0]

    ask(spoil)
    assert PROMPTS[0].metadata == {"text": "meow", "n": 2}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "function",
    [
        lambda images, prompts: np.arange(3),
        lambda images, prompts, scale=1.0: scale * np.arange(3),
        lambda images, prompts, **options: np.arange(3) + len(options),
        lambda *both: np.arange(3) + len(both) - 2,
        lambda prompts, images: [len(one.shape) * int(isinstance(prompts, list)) for one in images],
    ],
)
def test_two_arguments_are_images_and_prompts(function) -> None:
    total = ask(function).total.tolist()
    assert total == [0, 1, 2] or total == [3, 3, 3]  # the last one: named the other way round


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda images: [0], r"takes \(images\): expected \(images, prompts\)"),
        (lambda images, prompts, metadata, strict: [0], "Give any other parameter a default"),
        (lambda images, prompts, *, strict: [0], "Give any other parameter a default"),
        (lambda: 3, "returned a int"),
        (lambda: 1 / 0, "called to make a reward. It raised ZeroDivisionError"),
        (Method, "takes no images and returned a Method"),
    ],
)
def test_what_cannot_be_called_is_one_line(function, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        as_reward(function, "r" * 500)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


# --------------------------------------------------------------------------- images


def mean_of_uint8(images, prompts):
    assert isinstance(images, np.ndarray) and images.shape == (3, 4, 6, 3)
    assert images.dtype == np.uint8
    return images.mean((1, 2, 3))


def mean_of_pil(images, prompts):
    assert all(isinstance(one, Image.Image) and one.size == (6, 4) for one in images)
    return [np.asarray(one).mean() for one in images]


def test_images_come_as_they_are_asked_for(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    for form, function in [("uint8", mean_of_uint8), ("pil", mean_of_pil)]:
        marked = reward_function(images=form)(functools.partial(function))
        assert ask(marked).total.tolist() == [0, 1, 2]
    (tmp_path / "own_rewards_forms.py").write_text(
        "import numpy as np\n"
        "def pixels(images, prompts):\n    return [np.asarray(one).mean() for one in images]\n"
        "def own(images, prompts):\n    return [one.size[0] for one in images]\n"
        "own.images = 'pil'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = "own_rewards_forms:pixels"
    reward = load_reward(f"{name} + {name}@pil + 10*{name}@uint8 + own_rewards_forms:own")
    assert reward.labels == [name, f"{name}@pil", f"{name}@uint8", "own_rewards_forms:own"]
    assert reward(images(), PROMPTS).tolist() == pytest.approx([6, 6 + 11 + 1 / 255, 28 + 2 / 255])


def test_an_unknown_form_of_images() -> None:
    def function(images, prompts):
        return [0]

    function.images = "pill"  # type: ignore[attr-defined]
    with pytest.raises(InputError, match='images as "pill". Did you mean "pil"'):
        as_reward(function, "r")


# --------------------------------------------------------------------------- factories


def test_a_reward_of_the_usual_trainers_runs_unchanged(tmp_path, monkeypatch) -> None:
    (tmp_path / "usual_rewards.py").write_text(
        """
import numpy as np
import torch

made = []


def brightness():
    made.append("brightness")

    def _fn(images, prompts, metadata):
        if isinstance(images, torch.Tensor):
            images = (images * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
            images = images.transpose(0, 2, 3, 1)  # NCHW -> NHWC
        return np.array([image.mean() for image in images]), {"sizes": [3.0] * len(images)}

    return _fn


def learned(device):
    made.append(str(device))

    def _fn(images, prompts, metadata):
        return torch.ones(len(images)), {}

    return _fn


def several(device="cpu"):
    one, other = brightness(), learned(device)

    def _fn(images, prompts, metadata, only_strict=True):
        first, second = one(images, prompts, metadata)[0], other(images, prompts, metadata)[0]
        details = {"brightness": first, "learned": second}
        details["avg"] = [a + b for a, b in zip(first, second)]
        return details, {}

    return _fn


class Scorer:
    def __init__(self, device="cuda", dtype=torch.float32):
        made.append(f"Scorer on {device}")

    @torch.no_grad()
    def __call__(self, prompts, images):
        return [float(image.mean()) * 255 for image in images]
"""
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = ("brightness", "learned", "several", "Scorer")
    reward = load_reward("+".join(f"usual_rewards:{name}" for name in names), device="cpu")
    judged = reward.judge(images(), PROMPTS)
    assert judged.total.tolist() == pytest.approx([0 + 1 + 1 + 0, 1 + 1 + 2 + 1, 2 + 1 + 3 + 2])
    assert judged.means() == pytest.approx(
        {
            "reward/usual_rewards:brightness": 1,
            "reward/usual_rewards:learned": 1,
            "reward/usual_rewards:several": 2,
            "reward/usual_rewards:Scorer": 1,
            "reward/usual_rewards:brightness/sizes": 3,
            "reward/usual_rewards:several/brightness": 1,
            "reward/usual_rewards:several/learned": 1,
        }
    )
    reward(images(), PROMPTS)
    made = sys.modules["usual_rewards"].made
    assert made == ["brightness", "cpu", "brightness", "cpu", "Scorer on cpu"]  # once each


# --------------------------------------------------------------------------- details


class Spiteful:
    def __array__(self, *args, **kw):
        raise ZeroDivisionError


def test_details_are_numbers_for_each_image_or_for_all() -> None:
    details = {
        "each": torch.tensor([1.0, 2.0, 6.0]), "all": 4, "flag": [True, False, False],
        "holes": [1.0, float("nan"), float("inf")], "text": ["a", "b", "c"], "none": None,
        "wrong": [1.0, 2.0], "spite": Spiteful(), 7: np.float32(0.5), "none at all": [np.nan] * 3,
        "huge": torch.zeros(1).expand(10**12),
    }  # fmt: skip
    judged = ask(lambda images, prompts: ([1, 2, 3], details))
    assert judged.total.tolist() == [1, 2, 3]
    assert judged.means() == pytest.approx(
        {
            "reward/r/each": 3,
            "reward/r/all": 4,
            "reward/r/flag": 1 / 3,
            "reward/r/holes": 1,
            "reward/r/7": 0.5,
        }
    )
    assert set(judged.columns()) == {"reward/r/each", "reward/r/all", "reward/r/flag", "reward/r/7"}


def test_many_details_are_bounded() -> None:
    judged = ask(lambda images, prompts: ([1, 2, 3], {f"{i}\n" + "x" * 500: i for i in range(99)}))
    assert len(judged.means()) == MOST_DETAILS
    assert all(len(name) < 90 and name.isprintable() for name in judged.means())


def test_a_bare_reward_is_not_logged_twice_and_a_weighted_one_is() -> None:
    assert ask(lambda images, prompts: [1, 2, 3]).means() == {}
    reward = load_reward("10*jpeg_incompressibility")
    judged = reward.judge(images(), PROMPTS)
    mean = float(judged.total.double().mean())
    assert judged.means() == pytest.approx({"reward/jpeg_incompressibility": mean / 10})


def test_an_address_is_logged_without_its_options() -> None:
    both = [(1.0, f"http://me:secret@h:1/s?key_env=K&batch={n}", lambda i, p: [1]) for n in (1, 2)]
    means = Reward("both", both).judge(images(1), ["x"]).means()
    assert means == {"reward/http://h:1/s": 1, "reward/http://h:1/s (2)": 1}


# --------------------------------------------------------------------------- async


def test_coroutines_share_one_loop_and_may_be_called_from_another() -> None:
    loops = []

    async def one(pixels: torch.Tensor) -> float:
        await asyncio.sleep(0.001)
        return float(pixels.mean() * 255)

    async def score(images, prompts, metadata):
        loops.append(asyncio.get_running_loop())
        assert not torch.is_grad_enabled() and len(metadata) == 3
        return list(await asyncio.gather(*map(one, images))), {"calls": len(loops)}

    class Judge:
        async def __call__(self, images, prompts):
            loops.append(asyncio.get_running_loop())
            return torch.arange(3)

    assert ask(score).total.tolist() == pytest.approx([0, 1, 2])
    assert ask(Judge()).total.tolist() == [0, 1, 2]

    async def notebook():
        return ask(score)

    assert asyncio.run(notebook()).means() == {"reward/r/calls": 3}
    assert len(loops) == 3 and len(set(map(id, loops))) == 1


@pytest.mark.parametrize("error", [KeyError("no dogs"), SystemExit(3)])
def test_a_coroutine_that_fails_names_its_prompt(error: BaseException) -> None:
    async def score(images, prompts):
        await asyncio.sleep(0)
        if "a dog" in prompts:
            raise error
        return [0.0] * len(prompts)

    with pytest.raises(
        RewardError, match=f'raised {type(error).__name__}.* prompt 2 of 3, "a dog"'
    ):
        ask(score)
    assert ask(lambda images, prompts: [1, 2, 3]).total.tolist() == [1, 2, 3]
    assert ask(functools.partial(score), 1).total.tolist() == [0]  # the loop has lived on


def test_an_interrupt_cancels_what_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import Future

    started, ended = threading.Event(), threading.Event()

    async def score(images, prompts):
        try:
            started.set()
            await asyncio.sleep(60)
        finally:
            ended.set()

    def interrupted(self, timeout=None):
        assert started.wait(5)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Future, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ask(score)
    assert ended.wait(5)
    assert ask(lambda images, prompts: [1, 2, 3]).total.tolist() == [1, 2, 3]


# --------------------------------------------------------------------------- groups


@reward_function(group=True)
def ranks(images, prompts):
    """The place of each image among those of its prompt, by brightness."""
    assert len(set(prompts)) == 1
    order = images.mean((1, 2, 3)).argsort().argsort()
    return order.float(), {"size": len(images), f"of {prompts[0]}": order}


def test_a_group_is_seen_whole() -> None:
    prompts = ["a", "a", "a", "b", "b", "b"]
    batch = images(6).flip(0)
    judged = judge(as_reward(ranks, "ranks"), batch, prompts, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert judged.total.tolist() == [2, 1, 0, 2, 1, 0]
    assert judged.means() == {
        "reward/ranks/size": 3, "reward/ranks/of a": 1, "reward/ranks/of b": 1,
    }  # fmt: skip
    assert set(judged.columns()) == {"reward/ranks/size"}  # what all images have


def test_the_example_of_the_page_works() -> None:
    names: dict = {}
    for block in blocks(ROOT / "docs/IMAGES.md", "python"):
        if "brighter_half" in block.text:
            exec(block.text, names)
    batch = torch.tensor([0.2, 0.6, 0.9, 0.7]).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    judged = as_reward(names["brighter_half"], "half").judge(batch, ["a", "a", "a", "b"])
    assert judged.total.tolist() == [0, 1, 1, 1]
    assert judged.means() == {"reward/half/bright pixels": 12}


def test_groups_without_names_are_neighbours_of_one_prompt() -> None:
    reward = as_reward(ranks, "ranks")
    assert reward(images(5), ["a", "a", "b", "a", "a"]).tolist() == [0, 1, 0, 0, 1]
    # An evaluation has one image of each prompt, equal prompts or not.
    assert reward(images(3), ["a", "a", "a"], torch.arange(3)).tolist() == [0, 0, 0]
    # An epoch may draw one prompt twice: these are two groups.
    two = torch.tensor([0, 0, 1, 1])
    assert reward(images(4), ["a"] * 4, two).tolist() == [0, 1, 0, 1]


def test_a_failing_group_is_not_taken_apart() -> None:
    sizes = []

    @reward_function(group=True)
    def broken(images, prompts):
        sizes.append(len(images))
        if prompts[0] == "b":
            raise ValueError("no b")
        return torch.zeros(len(images))

    with pytest.raises(RewardError, match='ValueError: no b on all images of prompt 1 of 3, "b"'):
        as_reward(broken, "r")(images(5), ["a", "a", "b", "b", "b"])
    assert sizes == [2, 3]


def test_rewards_in_place_of_functions_stay_what_they_are() -> None:
    reward = load_reward("jpeg_compressibility")
    assert as_reward(reward, "other") is reward
    assert as_reward(reward, "other", combine="normalised").normalised and not reward.normalised
