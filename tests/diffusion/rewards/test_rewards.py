"""Reward expressions, the checks on what rewards return, and the built-in ones without weights."""

from __future__ import annotations

import io
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.errors import InputError, RewardError
from diffusion.rewards import PLAIN, WITH_WEIGHTS, Reward, load_reward
from diffusion.rewards.expression import Term, parse
from diffusion.rewards.reward import checked

torch.set_num_threads(1)

KNOWN = [*PLAIN, *WITH_WEIGHTS]


def images(count: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------- expressions


@pytest.mark.parametrize(
    ("expression", "terms"),
    [
        ("clip", [Term(1, "clip")]),
        ("  10*pickscore+2*hpsv2 ", [Term(10, "pickscore"), Term(2, "hpsv2")]),
        ("1e-3*clip", [Term(1e-3, "clip")]),
        ("1E+2 * clip - .5*aesthetic", [Term(100, "clip"), Term(-0.5, "aesthetic")]),
        ("-jpeg_incompressibility", [Term(-1, "jpeg_incompressibility")]),
        ("clip + -2*hpsv2", [Term(1, "clip"), Term(-2, "hpsv2")]),
        ("clip - -2*hpsv2", [Term(1, "clip"), Term(2, "hpsv2")]),
        ("clip-hpsv2", [Term(1, "clip"), Term(-1, "hpsv2")]),
        ("0*gold+attributes", [Term(0, "gold"), Term(1, "attributes")]),
        ("my.mod:fn", [Term(1, "my.mod:fn")]),
        ("2*a:b-3*c.d:e.f", [Term(2, "a:b"), Term(-3, "c.d:e.f")]),
        # Locations with signs of their own.
        (
            "clip@openai/clip-vit-base-patch32",
            [Term(1, "clip", "openai/clip-vit-base-patch32")],
        ),
        (
            "clip@/w/v1.5-pruned+ema+2*hpsv2@/w/h-14",
            [Term(1, "clip", "/w/v1.5-pruned+ema"), Term(2, "hpsv2", "/w/h-14")],
        ),
        (
            "clip@/w/a-b-.5*gold",
            [Term(1, "clip", "/w/a-b"), Term(-0.5, "gold")],
        ),
        ("clip@/w/my-clip", [Term(1, "clip", "/w/my-clip")]),
        ("clip@/w/a - gold", [Term(1, "clip", "/w/a"), Term(-1, "gold")]),
        ("clip@/w/a+gold", [Term(1, "clip", "/w/a"), Term(1, "gold")]),
        ("clip@/w/a+golden", [Term(1, "clip", "/w/a+golden")]),
        ('clip@"/w/a + gold" + gold', [Term(1, "clip", "/w/a + gold"), Term(1, "gold")]),
        ("clip@/My Models/clip+m:f", [Term(1, "clip", "/My Models/clip"), Term(1, "m:f")]),
        # Addresses.
        ("http://localhost:8000", [Term(1, "http://localhost:8000")]),
        (
            "2*https://my-host:1/a+b-c?batch=8&x=1*2+3*clip",
            [Term(2, "https://my-host:1/a+b-c?batch=8&x=1*2"), Term(3, "clip")],
        ),
        (
            "http://h:1/s+http://h:2/s-0.1*m:f",
            [Term(1, "http://h:1/s"), Term(1, "http://h:2/s"), Term(-0.1, "m:f")],
        ),
        (
            "http://h:1/s+clip-2*hpsv2",
            [Term(1, "http://h:1/s"), Term(1, "clip"), Term(-2, "hpsv2")],
        ),
    ],
)
def test_parse(expression: str, terms: list[Term]) -> None:
    assert parse(expression, KNOWN) == terms


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("clipp", 'Did you mean "clip"'),
        ("jpeg-compressibility", 'Did you mean "jpeg_compressibility"'),
        ("2*pickscor+clip", 'Did you mean "pickscore"'),
        ("rewards.ink", "module:function"),
        ("clip*2", "weight comes first"),
        ("2 clip", "expected a reward"),
        ("clip+", "at its end"),
        ("2*", "at its end"),
        ("clip hpsv2", "expected + or -"),
        ("2*3*clip", "cannot be read"),
        ("1e999*clip", "not finite"),
        ("clip@", "after @"),
        ("clip@'/w", "closing"),
        ("m:f@/w", "takes no @location"),
    ],
)
def test_parse_says_what_is_wrong(expression: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(expression, KNOWN)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_expression_that_is_too_long_is_one_short_line() -> None:
    for expression in ("1" * 100_000, "gold+" * 20_000 + "gold"):  # minutes to read
        with pytest.raises(InputError, match="characters: expected at most 10000") as caught:
            parse(expression, KNOWN)
        assert len(str(caught.value)) < 300


def test_every_built_in_name_parses_as_itself() -> None:
    for name in KNOWN:
        assert parse(f"2*{name}", KNOWN) == [Term(2, name)]


def test_plain_rewards_take_no_location() -> None:
    with pytest.raises(InputError, match="has no weights"):
        load_reward("jpeg_compressibility@/w")


# --------------------------------------------------------------------------- the sum


def test_weighted_sum_and_components() -> None:
    reward = Reward(
        "2*a-0.5*b+b",
        [
            (2.0, "a", lambda i, p: i.mean(dim=(1, 2, 3)).to(torch.bfloat16)),
            (-0.5, "b", lambda i, p: [1, 2]),
            (1.0, "b", lambda i, p: np.array([10.0, 20.0])),
        ],
    )
    batch = torch.stack([torch.full((3, 4, 4), 0.25), torch.full((3, 4, 4), 0.5)])
    parts = reward.components(batch, ["x", "y"])
    assert reward.labels == list(parts) == ["a", "b", "b (2)"]
    assert parts["b (2)"].tolist() == [10.0, 20.0]
    total = reward(batch, ["x", "y"])
    assert total.dtype == torch.float32 and total.shape == (2,)
    assert total.tolist() == [0.5 - 0.5 + 10, 1.0 - 1.0 + 20]
    assert torch.equal(total, reward.combine(parts))


def test_same_name_twice_is_told_apart_by_location(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        WITH_WEIGHTS, "clip", lambda location, device, trust: lambda i, p: [float(len(location))]
    )
    reward = load_reward("clip@aa/a+10*clip@bb/bb")
    assert reward.components(images(1), ["x"]) == {"clip@aa/a": 4.0, "clip@bb/bb": 5.0}
    assert reward(images(1), ["x"]).item() == 54


def test_mismatched_arguments_are_refused() -> None:
    reward = load_reward("jpeg_compressibility")
    with pytest.raises(ValueError, match="received"):
        reward(images(2), ["one"])
    with pytest.raises(ValueError, match="received"):
        reward(torch.rand(2, 1, 4, 4), ["a", "b"])


def test_no_images_no_rewards() -> None:
    assert load_reward("jpeg_compressibility")(torch.zeros(0, 3, 8, 8), []).shape == (0,)


def test_diverged_images_are_reported_not_rewarded() -> None:
    batch = images(3)
    batch[1, 0, 0, 0] = float("nan")
    with pytest.raises(RewardError, match='prompt 2 of 3, "second".*diverged'):
        load_reward("jpeg_compressibility")(batch, ["first", "second", "third"])


def test_overflow_of_the_sum_is_reported() -> None:
    with pytest.raises(RewardError, match="overflows"):
        Reward("1e300*a", [(1e300, "a", lambda i, p: [1.0])])(images(1), ["x"])


# --------------------------------------------------------------------------- checks


def returns(value):
    return lambda images, prompts: value


PROMPTS = ["a cat", "a dog\nin two lines", "a bird"]


class Spiteful:
    def __array__(self, *args, **kw):
        raise ZeroDivisionError("no array")


@pytest.mark.parametrize(
    "value",
    [
        [1, 2, 3],
        (1.0, 2.0, 3.0),
        np.array([1, 2, 3], dtype=np.int8),
        [np.float32(1), 2, 3],
        [torch.tensor(1.0), torch.tensor([2.0]), 3],
        torch.tensor([1.0, 2.0, 3.0], dtype=torch.float16),
        torch.tensor([1.0, 2.0, 3.0], requires_grad=True),
    ],
)
def test_accepts_what_holds_b_numbers(value) -> None:
    out = checked("r", returns(value), images(3), PROMPTS)
    assert out.dtype == torch.float32 and out.tolist() == [1, 2, 3] and not out.requires_grad


def test_booleans_count_as_zero_and_one() -> None:
    out = checked("r", returns(torch.tensor([True, False, True])), images(3), PROMPTS)
    assert out.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.zeros(3, 1), r"shape \(3, 1\): expected a tensor of shape \(3,\)"),
        (torch.zeros(2), r"shape \(2,\)"),
        (torch.tensor(1.0), r"shape \(\)"),
        (1.0, r"shape \(\)"),
        (None, "NoneType"),
        ("text", "returned a str"),
        (["a", "b", "c"], "list of str"),
        (([1.0, 2.0, 3.0], [{}]), "tuple of list"),
        (([1.0, 2.0], {}), r"shape \(2,\)"),
        (torch.zeros(3, dtype=torch.complex64), "expected a tensor"),
        ([1.0, float("nan"), float("inf")], r'nan for prompt 2 of 3, "a dog.*and 1 more'),
        (torch.tensor([1.0, 2.0, -float("inf")]), r'-inf for prompt 3 of 3, "a bird"'),
        ([1e300, 0.0, 0.0], r"1e.300 for prompt 1 of 3.*float32"),
        ([0.0, 10**400, 0.0], "list of float, int"),
        ([1 + 2j, 0, 0], "list of complex, int"),
        (np.array([1 + 2j, 0, 0]), "returned a ndarray"),
        (np.array(["1", "2", "3"]), "returned a ndarray"),
        ([0.0, None, 0.0], "list of NoneType, float"),
        ([0.0, object(), 0.0], "list of float, object"),
        ({"a cat": 1.0}, "returned a dict"),
        ((x for x in (1, 2, 3)), "returned a generator"),
        (np.zeros(3, "datetime64[s]"), "returned a ndarray"),
        (np.empty((0, 10**6)), r"shape \(0, 1000000\)"),
        (torch.zeros(1).expand(10**12), r"shape \(1000000000000,\)"),
        (Spiteful(), "returned a Spiteful"),
    ],
)
def test_refuses_the_rest(value, said: str) -> None:
    with pytest.raises(RewardError, match=f'Reward "ink" .*{said}') as caught:
        checked("ink", returns(value), images(3), PROMPTS)
    assert "\n" not in str(caught.value)


def test_a_raising_reward_is_reported_with_the_first_prompt_it_cannot_take() -> None:
    calls = []

    def fussy(batch, prompts):
        calls.append(len(prompts))
        for prompt in prompts:
            if "dog" in prompt:
                raise KeyError("no dogs")
        return torch.zeros(len(prompts))

    with pytest.raises(RewardError, match="raised KeyError: 'no dogs' for prompt 2 of 3") as caught:
        checked("fussy", fussy, images(3), PROMPTS)
    assert calls == [3, 1, 1]  # it stops at the first
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("code", [None, 0, 3, "bye" * 1000])
def test_a_reward_that_leaves_the_process_is_an_error(code, tmp_path, monkeypatch) -> None:
    def leave(batch, prompts):
        if any("dog" in prompt for prompt in prompts):
            sys.exit(code)
        return torch.zeros(len(prompts))

    with pytest.raises(RewardError, match=r'raised SystemExit .* prompt 2 of 3, "a dog') as caught:
        checked("leave", leave, images(3), PROMPTS)
    assert len(str(caught.value)) < 300
    (tmp_path / "own_rewards_e.py").write_text("raise SystemExit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(InputError, match="importing own_rewards_e raised SystemExit"):
        load_reward("own_rewards_e:f")


def test_a_reward_that_fails_only_on_batches_says_so() -> None:
    def memory(batch, prompts):
        if len(prompts) > 1:
            raise MemoryError
        return [0.0]

    with pytest.raises(RewardError, match='raised MemoryError .*"a cat".*none of its images alone'):
        checked("memory", memory, images(3), PROMPTS)


def test_one_image_is_not_tried_twice() -> None:
    calls = []

    def broken(batch, prompts):
        calls.append(1)
        raise ZeroDivisionError("division by zero")

    with pytest.raises(RewardError, match="ZeroDivisionError: division by zero for prompt 1 of 1"):
        checked("broken", broken, images(1), ["x" * 500])
    assert len(calls) == 1


def test_an_input_error_passes_unchanged_and_untried() -> None:
    calls = []

    def down(batch, prompts):
        calls.append(1)
        raise InputError("the server is down")

    with pytest.raises(InputError, match="^the server is down$"):
        checked("down", down, images(3), PROMPTS)
    assert len(calls) == 1


def test_an_interrupt_is_never_swallowed() -> None:
    def interrupted(batch, prompts):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checked("r", interrupted, images(2), PROMPTS[:2])


# --------------------------------------------------------------------------- JPEG


def test_jpeg_size_is_that_of_the_file_in_kilobytes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 24, 32, 3), dtype=np.uint8)
    sizes = []
    for array in pixels:
        file = io.BytesIO()
        Image.fromarray(array).save(file, "JPEG", quality=95)
        sizes.append(len(file.getvalue()) / 1000)
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    got = load_reward("jpeg_incompressibility")(batch, ["a", "b"])
    assert torch.allclose(got, torch.tensor(sizes))
    assert torch.equal(load_reward("jpeg_compressibility")(batch, ["a", "b"]), -got)


def test_jpeg_prefers_blank_to_noise_and_clamps() -> None:
    blank, noise = torch.full((3, 32, 32), 0.5), images(1, 32)[0]
    first, second = load_reward("jpeg_compressibility")(torch.stack([blank, noise]), ["", ""])
    assert first > second
    outside = torch.stack([torch.full((3, 32, 32), 7.0), torch.ones(3, 32, 32)])
    assert len(set(load_reward("jpeg_compressibility")(outside, ["", ""]).tolist())) == 1


# --------------------------------------------------------------------------- the shipped world


def test_world_rewards_ask_the_right_checker(monkeypatch: pytest.MonkeyPatch) -> None:
    checker, gold = types.ModuleType("checker"), types.ModuleType("gold")
    checker.soft_score = lambda i, p: torch.full((len(p),), 0.1)
    checker.hard_score = lambda i, p: {"attributes": torch.full((len(p),), 0.2)}
    gold.score = lambda i, p: {"attributes": torch.full((2,), 0.3), "wholly": torch.ones(2)}
    monkeypatch.setitem(sys.modules, "diffusion.world.checker", checker)
    monkeypatch.setitem(sys.modules, "diffusion.world.gold", gold)
    reward = load_reward("attributes+attributes_hard+gold+gold_wholly")
    parts = reward.components(images(2), ["a", "b"])
    assert [round(v[1].item(), 6) for v in parts.values()] == [0.1, 0.2, 0.3, 1.0]


def test_gold_reward_of_a_drawn_scene_is_one() -> None:
    from diffusion.world import scenes

    rng = np.random.default_rng(3)
    drawn = [scenes.sample_scene(rng, two_objects=0.0) for _ in range(4)]
    pictures = np.stack([scenes.render(scene, rng) for scene in drawn])
    batch = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    captions = [scene.caption() for scene in drawn]
    right = load_reward("gold")(batch, captions)
    wrong = load_reward("gold")(batch.flip(0), captions)
    assert right.mean() > 0.9 and wrong.mean() < right.mean() - 0.2


# --------------------------------------------------------------------------- module:function


def test_function_from_the_working_directory(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rewards_a.py").write_text(
        "def brightness(images, prompts):\n    return images.mean(dim=(1, 2, 3))\n"
        "class Box:\n    @staticmethod\n    def one(images, prompts):\n"
        "        return [1] * len(prompts)\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    batch = torch.full((2, 3, 4, 4), 0.25)
    reward = load_reward("2*own_rewards_a:brightness-own_rewards_a:Box.one")
    assert reward(batch, ["a", "b"]).tolist() == [-0.5, -0.5]
    for name, said in [
        ("own_rewards_a:brightnes", 'has no "brightnes". Did you mean "brightness"'),
        ("own_rewards_a:number", "number is a int"),
    ]:
        with pytest.raises(InputError) as caught:
            load_reward(name)
        assert said in str(caught.value)


def test_missing_and_broken_modules(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rewards_b.py").write_text("import surely_not_installed\n")
    (tmp_path / "own_rewards_c.py").write_text("raise RuntimeError('boom')\n")
    (tmp_path / "own_rewards_d.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, said in [
        ("no_such_module:f", 'no module "no_such_module"'),
        ("no_such_package.inner:f", 'no module "no_such_package"'),
        ("own_rewards_b:f", "surely_not_installed"),
        ("own_rewards_c:f", "RuntimeError: boom"),
        ("own_rewards_d:f", "SyntaxError"),
    ]:
        with pytest.raises(InputError) as caught:
            load_reward(name)
        assert said in str(caught.value) and "\n" not in str(caught.value)


# --------------------------------------------------------------------------- ImageReward


def test_imagereward_asks_its_package_image_by_image(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Model:
        def score(self, prompt, picture):
            asked.append((prompt, picture.size, picture.mode))
            return np.asarray(picture).mean() / 255

    package = types.ModuleType("ImageReward")
    package.load = lambda name, device: asked.append((name, device)) or Model()
    monkeypatch.setitem(sys.modules, "ImageReward", package)
    batch = torch.stack([torch.zeros(3, 4, 6), torch.ones(3, 4, 6)])
    assert load_reward("imagereward")(batch, ["a", "b"]).tolist() == [0.0, 1.0]
    assert asked[0] == ("ImageReward-v1.0", "cpu")
    assert asked[1:] == [("a", (6, 4), "RGB"), ("b", (6, 4), "RGB")]


def test_imagereward_missing_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ImageReward", types.ModuleType("ImageReward"))
    with pytest.raises(InputError, match="older transformers"):
        load_reward("imagereward")  # a package without `load`
    monkeypatch.delitem(sys.modules, "ImageReward")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(InputError, match="pip install image-reward"):
        load_reward("imagereward")
