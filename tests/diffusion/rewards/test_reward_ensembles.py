"""min, mean, var and std in reward expressions; rewards standardised within their groups."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from diffusion.errors import InputError
from diffusion.rewards import PLAIN, load_reward, split_expressions
from diffusion.rewards.ensembles import standardised
from diffusion.rewards.expression import DEEPEST, Ensemble, Part, Term, parse, rewards_of

KNOWN = ["clip", "hpsv2", "gold"]
CLIP, HPS, GOLD = (Term(1, name) for name in KNOWN)


def clip(location: str, weight: float = 1) -> Term:
    return Term(weight, "clip", location)


@pytest.mark.parametrize(
    ("expression", "parts"),
    [
        ("min(clip,hpsv2)", [Ensemble(1, "min", ((CLIP,), (HPS,)))]),
        (
            "mean(clip, hpsv2, gold) - 0.5*var(clip, hpsv2, gold)",
            [
                Ensemble(1, "mean", ((CLIP,), (HPS,), (GOLD,))),
                Ensemble(-0.5, "var", ((CLIP,), (HPS,), (GOLD,))),
            ],
        ),
        (
            " 2 * std ( clip , 0.1*hpsv2 - gold )+gold",
            [Ensemble(2, "std", ((CLIP,), (Term(0.1, "hpsv2"), Term(-1, "gold")))), GOLD],
        ),
        (
            "-min(mean(clip,gold),hpsv2)",
            [Ensemble(-1, "min", ((Ensemble(1, "mean", ((CLIP,), (GOLD,))),), (HPS,)))],
        ),
        # Paths and addresses end at a comma or at a parenthesis that they did not open.
        (
            "min(clip@/w/a(1)+b,hpsv2@'/w/x, y)') - clip@/w/a(1",
            [
                Ensemble(1, "min", ((clip("/w/a(1)+b"),), (Term(1, "hpsv2", "/w/x, y)"),))),
                clip("/w/a(1", -1),
            ],
        ),
        (
            "min(http://h:1,m:f@pil,gold)",
            [Ensemble(1, "min", ((Term(1, "http://h:1"),), (Term(1, "m:f", "pil"),), (GOLD,)))],
        ),
        ("m:f@uint8-gold", [Term(1, "m:f", "uint8"), Term(-1, "gold")]),
    ],
)  # fmt: skip
def test_parse(expression: str, parts: list[Part]) -> None:
    assert parse(expression, KNOWN) == parts


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("min(clip", r"closes min\("),
        ("min(clip,", "at its end: expected a reward"),
        ("min(clip)", "one reward, expected at least two"),
        ("min()", r'at "\)": expected a reward'),
        ("min(clip,)", r'at "\)": expected a reward'),
        ("min(clip,gold))", r'at "\)": expected \+ or -'),
        ("min(clip gold)", r"expected \+ or - before another term, or , or \)"),
        ("mean - 0.5*var", r"rewards in parentheses: mean\(clip, hpsv2\)"),
        ("maen(clip,gold)", 'no function "maen". Did you mean "mean"'),
        ("clip(gold)", "A reward takes no parentheses"),
        ("m:f@jpg", "only @float, @uint8, @pil"),
        ("min(" * 400, f"at most {DEEPEST} functions"),
        ("1e999*min(clip,gold)", "not finite"),
    ],
)
def test_parse_says_what_is_wrong(expression: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        parse(expression, KNOWN)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_commas_inside_of_ensembles_do_not_separate() -> None:
    assert split_expressions("gold,min(clip,mean(hpsv2,gold)),clip@/w/a(b,clip") == [
        "gold", "min(clip,mean(hpsv2,gold))", "clip@/w/a(b", "clip",
    ]  # fmt: skip


# --------------------------------------------------------------------------- values


def drawn(draw: random.Random, names: list[str], depth: int) -> tuple[str, float, int]:
    """An expression as text, its value as Python computes it, and how many rewards it names."""
    text, value, count = "", 0.0, 0
    for index in range(draw.randrange(1, 4)):
        sign = draw.choice("+-") if index else draw.choice(["", "-"])
        weight = draw.choice([None, 0.5, 2, 1e-3])
        if depth and draw.random() < 0.5:
            function = draw.choice(["min", "mean", "var", "std"])
            inner = [drawn(draw, names, depth - 1) for _ in range(draw.randrange(2, 4))]
            part = f"{function}({', '.join(one[0] for one in inner)})"
            values = [one[1] for one in inner]
            mean = sum(values) / len(values)
            variance = sum((one - mean) ** 2 for one in values) / len(values)
            number = {
                "min": min(values), "mean": mean, "var": variance, "std": math.sqrt(variance),
            }[function]  # fmt: skip
            count += sum(one[2] for one in inner)
        else:
            part = draw.choice(names)
            number = VALUES[part]
            count += 1
        text += f"{sign}{'' if weight is None else f'{weight}*'}{part}"
        value += (-1 if sign == "-" else 1) * (1 if weight is None else weight) * number
    return text, value, count


VALUES = {"one": 1.25, "two": -0.5, "three": 3.0, "four": 0.0}


def test_expressions_have_the_value_that_they_read_as(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name, value in VALUES.items():
        monkeypatch.setitem(
            PLAIN, name, lambda i, p, name=name, value=value: calls.append(name) or [value]
        )
    draw = random.Random(0)
    images, deep = torch.zeros(1, 3, 2, 2), 0
    for _ in range(60):
        text, value, count = drawn(draw, list(VALUES), 3)
        calls.clear()
        reward = load_reward(text)
        assert reward(images, ["x"]).item() == pytest.approx(value, rel=1e-5, abs=1e-5), text
        assert len(list(rewards_of(parse(text, list(PLAIN))))) == count
        assert sorted(calls) == sorted(set(calls)) == sorted(reward.labels)  # each asked once
        deep += count > len(calls)
    assert deep > 20


def test_every_reward_of_an_ensemble_is_reported_once() -> None:
    reward = load_reward("mean(jpeg_compressibility, 2*jpeg_incompressibility)"
                         "-0.5*var(jpeg_compressibility,jpeg_incompressibility)")  # fmt: skip
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    size = load_reward("jpeg_incompressibility")(images, ["a", "b"]).double()
    judged = reward.judge(images, ["a", "b"])
    assert torch.allclose(judged.total.double(), size / 2 - 0.5 * size**2)
    assert judged.means() == pytest.approx(
        {
            "reward/jpeg_compressibility": -float(size.mean()),
            "reward/jpeg_incompressibility": float(size.mean()),
        }
    )


# --------------------------------------------------------------------------- within the group


def test_standardised_by_hand() -> None:
    values = torch.tensor([1.0, 3.0, 5.0, 5.0, 7.0, 0.0])
    group = torch.tensor([4, 4, 1, 1, 4, 9])
    spread = math.sqrt(((1 - 11 / 3) ** 2 + (3 - 11 / 3) ** 2 + (7 - 11 / 3) ** 2) / 3)
    expected = [(1 - 11 / 3) / spread, (3 - 11 / 3) / spread, 0, 0, (7 - 11 / 3) / spread, 0]
    assert standardised(values, group).tolist() == pytest.approx(expected)
    assert standardised(torch.zeros(0), torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_rounding_is_no_spread() -> None:
    values = torch.tensor([1000.0, np.nextafter(np.float32(1000), np.float32(2000)), 0.1, 0.2])
    group = torch.tensor([0, 0, 1, 1])
    assert standardised(values, group).tolist() == pytest.approx([0, 0, -1, 1])


def test_normalised_rewards_do_not_depend_on_scale_and_offset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = torch.randn(8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setitem(PLAIN, "plain", lambda i, p: values)
    monkeypatch.setitem(PLAIN, "large", lambda i, p: 1e4 * values.flip(0) + 5e4)
    group = torch.arange(2).repeat_interleave(4)
    images, prompts = torch.zeros(8, 3, 2, 2), ["a"] * 4 + ["b"] * 4
    one, other = standardised(values, group), standardised(values.flip(0), group)
    for expression, expected in [
        ("2*plain+large", 2 * one + other),
        ("min(plain,large)", torch.minimum(one, other)),
        ("mean(plain,large)-0.5*var(plain,large)", (one + other) / 2 - (one - other) ** 2 / 8),
    ]:
        reward = load_reward(expression, combine="normalised")
        judged = reward.judge(images, prompts, group)
        assert torch.allclose(judged.total.double(), expected, atol=1e-5), expression
        raw = load_reward(expression)(images, prompts, group)
        assert torch.equal(judged.raw, raw) and not torch.allclose(raw, judged.total)
        assert torch.equal(reward(images, prompts), raw)  # an evaluation knows no groups
        assert judged.means()["reward/large"] == pytest.approx(
            float((1e4 * values + 5e4).double().mean()), rel=1e-6
        )
