"""`genpol label`: what it opens, what it says, and judges in a person's place."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from chat_servers import chatting, says
from lerobot_examples import FPS, LENGTHS, write
from PIL import Image
from toy_data import line_data
from toy_reach import demonstration, write_demonstrations

from genpol.cli import main
from genpol.commands.label.command import by_version, run
from genpol.commands.label.options import Label as LabelOptions
from genpol.commands.label.vlm import EpisodeJudge, grid, load_judge
from genpol.reports.videos import write_video
from offline.errors import InputError
from robots.datasets.labels import Label, read_labels
from robots.datasets.open import open_dataset


def test_the_page_is_served_until_it_is_finished(tmp_path, capsys):
    folder = write(tmp_path / "data", video=True)
    (folder / "videos" / "observation.images.side" / "chunk-000").mkdir(parents=True)
    films = np.zeros((sum(LENGTHS), 32, 48, 3), np.uint8)
    write_video(folder / "videos/observation.images.side/chunk-000/file-000.mp4", films, FPS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    thread = threading.Thread(target=run, args=(LabelOptions(str(folder), port=port),), daemon=True)
    thread.start()
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for _ in range(600):
        try:
            link.request("GET", "/state")
            break
        except ConnectionRefusedError:
            link.close()
            time.sleep(0.05)
    state = json.load(link.getresponse())
    said = [one["said"] for one in state["episodes"]]
    assert said == [True, False, True] and state["marks"]  # next.success of the data
    link.request("GET", "/film/1")
    head = json.loads(link.getresponse().read().partition(b"\n")[0])
    assert head["steps"] == 5 and head["prompt"] == "open the drawer"
    body = {"episode": 1, "label": {"success": True, "moment": 0.3}}
    for path, sent in (("/label", body), ("/done", {})):
        link.request("POST", path, json.dumps(sent), {"Content-Type": "application/json"})
        assert link.getresponse().read() == b"{}"
    thread.join(60)
    assert not thread.is_alive()
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"label on http://127.0.0.1:{port} ")
    assert out[-1] == (
        f"{folder}/labels.csv: 1 of 3 episodes labelled, 1 success, 0 failures, 0 skipped"
    )
    episodes = open_dataset(folder)  # what learns takes the labels up: a success ends at its moment
    assert [episodes[i].success for i in range(3)] == [True, True, True]
    assert episodes.lengths.tolist() == [3, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_page(tmp_path, number):
    folder = write(tmp_path / "data")
    command = [sys.executable, "-m", "genpol", "label", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        process.stdout.readline()
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait(10)
    assert process.returncode == 0 and "Traceback" not in err
    assert "0 of 3 episodes labelled" in out


def test_a_function_of_ones_own_labels_a_file(tmp_path, capsys, monkeypatch):
    (tmp_path / "judging.py").write_text(
        "def short(episode):\n    return None if len(episode) == 12 else True\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    episodes = [demonstration(seed) for seed in range(8)]
    write_demonstrations(tmp_path / "demos.hdf5", episodes)
    assert main(["label", "demos.hdf5", "--success", "judging:short"]) == 0
    labels = read_labels("demos.labels.csv")
    short = {index: Label(True) for index, one in enumerate(episodes) if len(one) < 12}
    assert labels == short and 0 < len(short) < 8
    out = capsys.readouterr().out
    assert f"called {len(short)} episodes successes and 0 failures" in out
    assert f"could not say of {8 - len(short)}" in out
    assert "pass --success demos.labels.csv to the command that learns" in out
    assert main(["label", "demos.hdf5", "--success", "judging:short", "--compare"]) == 0
    assert f"agrees with {len(short)} of {len(short)} labels" in capsys.readouterr().out


def test_demonstrations_that_all_succeeded(tmp_path, capsys):
    folder = write(tmp_path / "demos")
    (folder / "labels.csv").write_text("episode,success,moment\n2,0,\n")
    assert main(["label", str(folder), "--success", "all"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2 episodes are successes now",
        f"{folder}/labels.csv: 3 of 3 episodes labelled, 2 successes, 1 failure, 0 skipped",
    ]


def test_success_by_version_is_said_of_a_recording():
    said = [(True, []), (False, []), (None, ["1-a"]), (None, ["1-a", "2-b"]), (True, ["1-a"])]
    data = line_data(5)
    assert by_version(data, {}) == []
    data.facts = lambda i: SimpleNamespace(success=said[i][0], versions=said[i][1])
    lines = by_version(data, {0: Label(False), 2: Label(False), 3: Label(None)})
    assert [line[: line.index("(")] for line in lines] == [
        "  the policy as it is: 0 of 2 succeeded ", "  version 1-a: 1 of 2 succeeded ",
    ]  # fmt: skip
    assert "(50%, 9% to 91%)" in lines[1]  # Wilson: (.5 + z2/4n +- z sqrt(.25/n + z2/4n2))/(1+z2/n)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--success", "every"], 'received "every"'),
        (["--success", "all", "--compare"], "--compare needs a judge"),
        (["--success", "nowhere:f"], "nowhere does not import"),
        (["--success", "math:pi"], "expected a function"),
        (["--success", "vlm@localhost:1"], "needs the address of a server"),
        (["--success", "vlm@http://h:1?frames=0"], '--success "http://h:1.*frames of at least 1'),
        (["--success", "vlm@http://127.0.0.1:1/v1?model=m&retries=0"], "Connection refused"),
        (["--compare"], "--compare needs a judge"),
        (["--height", "0"], "--height must be"),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path, capsys, words, said):
    write_demonstrations(tmp_path / "demos.hdf5", [demonstration(0)])
    assert main(["label", str(tmp_path / "demos.hdf5"), *words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.search(said, err), err


# -- a vision-language model


def seen(body) -> tuple[str, list[np.ndarray]]:
    text, *pictures = body["messages"][0]["content"]
    data = [one["image_url"]["url"].partition(",")[2] for one in pictures]
    return text["text"], [np.asarray(Image.open(io.BytesIO(base64.b64decode(d)))) for d in data]


def white(picture: np.ndarray) -> float:
    """Where the bar is, of -1.2 to 1.2."""
    columns = np.flatnonzero(picture.mean((0, 2)) > 128)
    return (columns.mean() - 1) / (picture.shape[1] - 3) * 2.4 - 1.2


def test_a_vision_language_model_labels_by_the_last_picture():
    asked = []

    def answer(body):
        text, pictures = seen(body)
        asked.append((text, len(pictures)))
        apart = abs(white(pictures[-1]))
        return says("9" if apart < 0.2 else "5" if apart < 0.5 else '{"score": 1}')

    data = line_data(6, image=True, language="go to the middle")
    with chatting(answer) as (url, _):
        judge = load_judge(f"{url}?frames=4&concurrency=2", 480)
        said = [judge(data[i], i) for i in range(6)]
    ends = [abs(white(data[i].obs["camera"][-1])) for i in range(6)]
    assert said == [True if e < 0.2 else None if e < 0.5 else False for e in ends]
    assert {True, False} <= set(said)
    assert asked[0][1] == 4 and "Task: go to the middle\n" in asked[0][0]
    assert "from 0 (certainly not) to 10 (certainly)" in asked[0][0]


def test_a_server_of_one_picture_is_told_how():
    def answer(body):
        if len(seen(body)[1]) > 1:
            return 400, b'{"error": "At most 1 image may be provided"}'
        return says("10")

    data = line_data(1, image=True)
    with chatting(answer) as (url, _):
        with pytest.raises(InputError, match="At most 1 image.*add layout=grid"):
            load_judge(f"{url}?model=m", 480)(data[0], 0)
        assert load_judge(f"{url}?model=m&layout=grid", 480)(data[0], 0) is True


def test_pictures_are_evenly_spaced_and_a_grid_holds_all():
    chat = type("Chat", (), {"low": 0.0, "high": 10.0})()
    judge = EpisodeJudge(chat, frames=3)
    assert (judge.success, judge.failure) == (7, 3)
    data = line_data(3, image=True)
    one = max((data[i] for i in range(3)), key=len)
    first, _, last = judge.pictures(one, 0)
    assert (first == one.obs["camera"][0]).all() and (last == one.obs["camera"][-1]).all()
    sheet = grid(judge.pictures(one, 0))
    assert sheet.shape == (2 * 16 + 4, 2 * 16 + 4, 3)
    assert (sheet[:16, :16] == first).all() and (sheet[20:, :16] == last).all()
    assert (sheet[20:, 20:] == 255).all()
    with pytest.raises(InputError, match="no pictures that a vision-language model"):
        judge.pictures(demonstration(0), 3)
    with pytest.raises(InputError, match='no pictures "wrist", it has camera'):
        EpisodeJudge(chat, camera="wrist").pictures(one, 0)
