"""The vision-language judge against small servers of the chat interface."""

from __future__ import annotations

import base64
import io
import json
import threading
import time

import numpy as np
import pytest
import torch
from chat_servers import chatting, question, says
from PIL import Image

from diffusion.errors import InputError, RewardError
from diffusion.rewards import load_reward
from diffusion.rewards.chat import number_of

torch.set_num_threads(1)
FAST = "backoff=0.01"


def images(count: int) -> torch.Tensor:
    """Image k is all k/255."""
    return (torch.arange(count) / 255).view(-1, 1, 1, 1).expand(-1, 3, 4, 6).contiguous()


def prompts(count: int) -> list[str]:
    return [f"caption {index} {{low}} é" for index in range(count)]


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("8", 8), (" 7.5 \n", 7.5), ("8.", 8), ("+3", 3), ("-2", -2), ("8/10", 8), ("8 / 10.0", 8),
        ("Score: 8", 8), ("rating = 0.5/10", 0.5), ('{"score": 6}', 6),
        ('{"rating": 6.5, "why": "a"}', 6.5),
        ("```json\n{\"score\": 4}\n```", 4), ("```\n4\n```", 4), ("1e1", 10),
        ("<think>Maybe 3, or 5?\n</think>\n\n7", 7), ("99", 99),
        # What holds a number, or several, and is none.
        ("8/5", None), ("I would say 8", None), ("8 out of 10", None), ("between 7 and 8", None),
        ("8, 9", None), ("7-8", None), ("eight", None), ("", None), ("NaN", None),
        ("Infinity", None),
        ("true", None), ("null", None), ('"8"', None), ("[8]", None), ('{"score": "8"}', None),
        ('{"score": true}', None), ('{"score": null}', None), ('{"score": 1, "rating": 2}', None),
        ('{"value": 8}', None), ("{}", None), ("1" + "0" * 400, None), ("1e999", None),
        ("8" * 5000, None),
        ("<think>8", None), ("7" + " " * 10**5 + "x", None), ("```" * 10**5, None), ("```7", None),
        ("``````", None), ("10%", None), ("0x8", None), ("٣٫٣", None), ("[" * 5000, None),
    ],
)  # fmt: skip
def test_a_number_is_a_number_or_nothing(reply: str, number: float | None) -> None:
    assert number_of(reply, 10) == number


def test_each_image_is_asked_about_with_its_caption() -> None:
    def answer(body: dict):
        text, picture = question(body)
        kind, _, data = picture.partition(",")
        assert kind == "data:image/png;base64"
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        index = int(pixels.mean())
        assert pixels.shape == (4, 6, 3) and f"Caption: caption {index} {{low}} é\n" in text
        assert "from 0 (not at all) to 10 (entirely)" in text
        return says(f"{index / 2}")

    with chatting(answer) as (url, asked):
        reward = load_reward(f"2*vlm@{url}?model=m-7B&max_tokens=9&{FAST}+jpeg_compressibility")
        judged = reward.judge(images(8), prompts(8))
    assert judged.means()["reward/vlm"] == 3.5 / 2
    assert reward.labels == ["vlm", "jpeg_compressibility"]
    assert len(asked) == 8 and {path for path, _ in asked} == {"/v1/chat/completions"}
    for _, body in asked:
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("m-7B", 9, 0)
    assert "Authorization" not in asked.headers


def test_an_instruction_a_range_and_a_key_of_ones_own(tmp_path, monkeypatch) -> None:
    (tmp_path / "judge.txt").write_text("Rate {prompt} from {low} to {high}.")
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    said = []

    def answer(body: dict):
        said.append(question(body)[0])
        return says('{"score": -1}')

    options = f"instruction={tmp_path / 'judge.txt'}&low=-1&high=1.5&key_env=JUDGE_KEY"
    with chatting(answer) as (url, asked):
        reward = load_reward(f"vlm@{url}?{options}")
        assert reward(images(1), ["{high} cats"]).tolist() == [-1]
        assert asked[0] == ("/v1/models", None)  # the server's only model
    assert said == ["Rate {high} cats from -1 to 1.5."]
    assert asked[1][1]["model"] == "small-vlm"
    assert asked.headers["Authorization"] == "Bearer s3cret"
    with pytest.raises(RewardError) as caught:  # the server is away now
        load_reward(f"vlm@{url}?{options}&retries=0")
    assert "s3cret" not in str(caught.value)


def test_a_bad_reply_is_asked_for_again_warmer() -> None:
    replies = iter(["Very nice!", "11", "9"])
    with chatting(lambda body: says(next(replies))) as (url, asked):
        reward = load_reward(f"vlm@{url}?model=m&{FAST}")
        assert reward(images(1), prompts(1)).tolist() == [9]
    assert [body["temperature"] for _, body in asked] == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (says("I would give this an 8 out of 10. " * 100), r'replied "I would give .*\.\.\."'),
        (says("11"), 'replied "11" about prompt "caption 0 .*expected one from 0 to 10'),
        (says("-0.5"), "-0.5"),
        (says("Let me see", "length"), "cut off after 512 tokens"),
        (says(None), 'replied ""'),
        (says([{"type": "text", "text": "no"}]), 'replied "no"'),
        ((200, b"<html>"), "expected a chat completion"),
        ((200, b'{"choices": []}'), "expected a chat completion"),
        ((200, b'{"choices": [{"message": "8"}]}'), "expected a chat completion"),
        ((200, json.dumps({"choices": [{"message": {"content": 8}}]}).encode()), "chat completion"),
        ((200, b"x" * 2**21), "longer than"),
        ((400, b'{"error": "no images here"}'), "refused about prompt.*no images here"),
        ((401, b""), "key_env"),
        ((302, b""), "refused|sends on"),
    ],
)  # fmt: skip
def test_what_is_no_judgement_is_one_line(reply, said: str) -> None:
    with chatting(lambda body: reply) as (url, asked):
        reward = load_reward(f"vlm@{url}?model=m&retries=1&{FAST}")
        with pytest.raises(RewardError, match=said) as caught:
            reward(images(1), prompts(1))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert len(asked) <= 3


def test_what_may_pass_is_tried_again() -> None:
    replies = iter([(429, b"slow down"), (500, b"oops"), says("5")])
    with chatting(lambda body: next(replies)) as (url, asked):
        assert load_reward(f"vlm@{url}?model=m&{FAST}")(images(1), prompts(1)).tolist() == [5]
    assert len(asked) == 3
    with chatting(lambda body: (503, b"loading")) as (url, asked):
        reward = load_reward(f"vlm@{url}?model=m&retries=2&{FAST}")
        with pytest.raises(RewardError, match="The judge .*failed 3 times: HTTP 503 loading"):
            reward(images(1), prompts(1))
    assert len(asked) == 3


def test_a_slow_reply_is_late() -> None:
    release = threading.Event()

    def answer(body: dict):
        release.wait(10)
        return says("5")

    with chatting(answer) as (url, _):
        reward = load_reward(f"vlm@{url}?model=m&timeout=0.2&retries=0&{FAST}")
        start = time.monotonic()
        with pytest.raises(RewardError, match=r"did not answer about prompt.*within 0.2 s"):
            reward(images(2), prompts(2))
        assert time.monotonic() - start < 5
        release.set()


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_requests_at_a_time_than_allowed(limit: int) -> None:
    lock, gate = threading.Lock(), threading.Barrier(limit)
    now, most = 0, 0

    def answer(body: dict):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        gate.wait(10)  # as many as may come do come at once
        with lock:
            now -= 1
        return says("5")

    with chatting(answer) as (url, _):
        reward = load_reward(f"vlm@{url}?model=m&concurrency={limit}&{FAST}")
        assert reward(images(3 * limit), prompts(3 * limit)).tolist() == [5] * (3 * limit)
    assert most == limit


def test_after_an_error_nothing_more_is_asked() -> None:
    with chatting(lambda body: (400, b"no")) as (url, asked):
        reward = load_reward(f"vlm@{url}?model=m&concurrency=1")
        with pytest.raises(RewardError, match="refused"):
            reward(images(50), prompts(50))
        time.sleep(0.1)
        assert len(asked) < 10


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("", "needs the address of a server"),
        ("@/w/model", "needs the address of a server"),
        ("@http://h:1?modle=x", 'no option "modle". Did you mean "model"'),
        ("@http://h:1?concurrency=0", "concurrency of at least 1"),
        ("@http://h:1?low=1e9", "low of at least"),
        ("@http://h:1?low=nan", 'not "nan"'),
        ("@http://h:1?low=5&high=5", "low below high"),
        ("@http://h:1?instruction=/nowhere/x", "cannot be read"),
        ("@http://h:1?instruction=/dev/null", "holds no text"),
        ("@http://h:1?key_env=NOT_SET_ANYWHERE", "no environment variable"),
        ("@http://127.0.0.1:1/v1?model=m&retries=0", "The judge .*Connection refused"),
        ("@http://:80", "no host"),
    ],
)
def test_what_cannot_be_asked_is_one_line(location: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load_reward(f"vlm{location}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("models", "said"), [((), "does not say which"), (("a", "b"), "It has a, b. Add .model=NAME")]
)
def test_which_model_must_be_said(models, said: str) -> None:
    with chatting(lambda body: says("5"), models) as (url, _):
        with pytest.raises(InputError, match=said):
            load_reward(f"vlm@{url}")
