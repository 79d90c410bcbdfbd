"""A reward server that fails while a fine-tuning run is under way."""

from __future__ import annotations

import base64
import io
import time

import numpy as np
import pytest
from PIL import Image
from reward_servers import answering, numbers
from small_runs import assert_same_checkpoint, checkpoint, finetune, lasting, resume


def brightness(request):
    """The mean of each picture."""
    pictures = [Image.open(io.BytesIO(base64.b64decode(text))) for text in request["images"]]
    return numbers(*(float(np.asarray(picture).mean()) for picture in pictures))


@pytest.mark.slow
def test_a_reward_server_that_fails_mid_epoch(models, prompts, tmp_path, monkeypatch, capsys):
    """It comes back: the run goes on. It stays away: what has ended is kept, and goes on."""
    calls, down = [], set()

    def answer(request):
        calls.append(len(calls))
        return (503, b"restarting") if calls[-1] in down else brightness(request)

    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    options = {"model": models["sd"], "prompts": prompts, "epochs": 3}
    options |= {"checkpoint_every": 10, "eval_every": 10}  # no checkpoint until the end
    with answering(answer) as url:
        options["reward"] = f"{url}?retries=2"
        straight, run = tmp_path / "straight", tmp_path / "run"
        assert finetune(output=straight, **options) == 0
        assert len(calls) == 6  # the check at the start, before, three epochs, after
        capsys.readouterr()

        calls.clear()
        down |= {2, 4, 5, 6}  # one try in the first epoch, all of them in the second
        assert finetune(output=run, **options) == 2
        said = capsys.readouterr().err.replace("\r", "\n")
        assert said.count("warning: The reward server") == 2
        (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert "failed 3 times: HTTP 503 restarting" in error
        assert f"checkpoint of epoch 1 is kept; continue with --resume {run}" in error
        assert checkpoint(run)[0] == 1

        calls.clear()
        down.clear()
        assert resume(run) == 0
    assert_same_checkpoint(run, straight)
    assert lasting(run) == lasting(straight)
