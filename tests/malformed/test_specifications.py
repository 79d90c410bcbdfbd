"""Names of policies, critics, environments and servers that name nothing: one line, and no code is
run but a module that exists and is named."""

from __future__ import annotations

import random

import pytest
from malformed import refusal
from toy_reach import NAME

pytestmark = pytest.mark.slow

LONG = "x" * 100_000
PREFIXES = (
    "module", "ws", "wss", "octo", "lerobot", "robomimic", "http", "minari", "os", "ogbench",
)  # fmt: skip
ENDS = (
    "", ":", "://", "://:", "://:1", "://[::1", "://127.0.0.1:0", "://127.0.0.1:99999",
    "://" + "x" * 300, "://127.0.0.1:1/%00", "//", ":?", ":?a", ":?a=", ":nowhere?a=b&a=c", ":\x00",
    ":" + LONG, ":..", ":/", ":/dev/null", ":nowhere", ":system", ":path.join.x",
    ":" + "a." * 2000 + "b", ":\ud800", ": ", ":1", ":" + "x" * 300,
)  # fmt: skip
BARE = (
    "", " ", LONG, "\x00", "/" * 4000, "a/" * 2000, "x" * 300, "\ud800", "/dev/null", "/etc/passwd",
    "..", "~nobody-here", "-", "\n", "%00", "metaworld/", "metaworld/\x00",
    "metaworld/" + "x" * 999,
    "ogbench/" + "x" * 3000, "a" * 254 + "/b",
)  # fmt: skip


def specifications(seed: str, count: int) -> list[str]:
    draw = random.Random(seed)
    made = [prefix + end for prefix in PREFIXES for end in ENDS]
    return [*BARE, *draw.sample(made, count - len(BARE))]


LINES = {
    "a policy to serve": ["serve", "--policy={}"],
    "a critic": ["serve", "--policy", "nowhere", "--value={}"],
    "a server": ["serve", "--value", "nowhere", "--upstream={}"],
    "a base policy": ["train", "--env", NAME, "--base={}", "--output", "out"],
    "a critic to start from": ["train", "--env", NAME, "--value={}", "--output", "out"],
    "an environment to train in": ["train", "--env={}", "--output", "out"],
    "an environment to collect in": ["collect", "--env={}", "--output", "out/demos.hdf5"],
    "a language model": ["clone", "--data", "nowhere", "--language-model={}", "--output", "out"],
    "a pipeline": ["generate", "--prompts", "world", "--num-prompts", "1", "--model={}"],
    "a LoRA": ["generate", "--prompts", "world", "--num-prompts", "1", "--lora={}"],
    "a run to resume": ["train", "--resume={}"],
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_it_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    wrong = {}
    for spec in specifications(name, 40):
        if spec == "" and name != "a policy to serve":
            continue  # as good as not given
        words = [word.replace("{}", spec) for word in LINES[name]]
        try:
            refusal(words, tmp_path)
        except BaseException as error:
            wrong[spec[:60]] = f"{type(error).__name__}: {str(error)[:300]}"
    assert not wrong
