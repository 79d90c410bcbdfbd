"""The server of the page: who gets in, what it refuses, and what a film holds."""

from __future__ import annotations

import http.client
import io
import json

import numpy as np
import pytest
from PIL import Image
from toy_data import ListEpisodes, episode, picture, spec

from offline.data.episodes import Episode
from offline.errors import InputError
from robots.datasets.labels import Label
from robots.labelling.film import film
from robots.labelling.server import Labelling, LabelServer
from robots.labelling.sheet import Sheet

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def served(tmp_path):
    data = ListEpisodes([episode(5, seed=seed) for seed in range(2)], spec())
    data.meta = {"fps": 10}
    labelling = Labelling(lambda: data, Sheet(tmp_path / "labels.csv"))
    with LabelServer(labelling) as server:
        yield labelling, server, data


def ask(server, method, path, body=None, **headers):
    host = server.address.removeprefix("http://")
    link = http.client.HTTPConnection(host, timeout=20)
    try:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        link.request(method, path, body, named)
        answer = link.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        link.close()


def put(server, body, **headers):
    text = body if isinstance(body, (str, bytes)) else json.dumps(body)
    return ask(server, "POST", "/label", text, **({"Content_Type": JSON["Content-Type"]} | headers))


def test_the_page_and_nothing_else(served):
    _, server, _ = served
    assert "<title>Label</title>" in ask(server, "GET", "/")[1]
    assert ask(server, "GET", "/label.js")[0] == ask(server, "GET", "/label.css")[0] == 200
    for path in (
        "/label.html",
        "/../server.py",
        "/film/",
        "/film/x",
        "/film/-1",
        "/film/1.0",
        "/x",
    ):
        assert ask(server, "GET", path)[0] == 404
    status, said = ask(server, "GET", "/film/7")
    assert (status, said) == (422, "there is no episode 7")


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example:80"},  # a name that its owner lets lead here
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "evil.example/@127.0.0.1"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Content_Type": "text/plain"},  # which any page may send anywhere
        {"Content_Type": "application/x-www-form-urlencoded"},
    ],
)
def test_other_pages_are_refused(served, headers):
    labelling, server, _ = served
    body = {"episode": 0, "label": {"success": True}}
    assert put(server, body, **headers)[0] == 403
    if "Content_Type" not in headers:
        assert ask(server, "GET", "/state", **headers)[0] == 403
    assert labelling.sheet.read() == {}


def test_a_tunnel_of_another_port_is_let_in(served):
    labelling, server, _ = served
    headers = {"Host": "localhost:9000", "Origin": "http://localhost:9000"}
    assert put(server, {"episode": 0, "label": {"success": True}}, **headers)[0] == 200
    assert labelling.sheet.read() == {0: Label(True)}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"episode": 2, "label": None}, "no episode 2"),
        ({"episode": -1, "label": None}, "no episode -1"),
        ({"episode": True, "label": None}, "episode"),
        ({"episode": 0}, "label"),
        ({"episode": 0, "label": {"success": 1}}, "success"),
        ({"episode": 0, "label": {"success": True, "moment": -0.1}}, "moment"),
        ({"episode": 0, "label": {"success": True, "moment": 0.6}}, "lies behind episode 0"),
        ('{"episode": 0, "label": {"success": true, "moment": NaN}}', "moment"),
        ({"episode": 0, "label": {"success": True, "more": 1}}, "more"),
        ([], "body"),
        ("{", "body"),
        (b"\xff\xfe", "body"),
    ],
)
def test_what_is_no_label_is_refused_in_a_line(served, body, said):
    labelling, server, _ = served
    status, answer = put(server, body)
    assert status in (400, 422) and said in answer and "\n" not in answer
    assert not labelling.sheet.path.exists()


def test_a_long_or_endless_body_is_not_read(served):
    labelling, server, _ = served
    assert put(server, " " * 5000)[0] == 413
    assert put(server, "{}", Content_Length="-1")[0] == 413
    assert not labelling.sheet.path.exists()


def test_what_is_recorded_meanwhile_appears(served):
    labelling, server, data = served
    assert len(json.loads(ask(server, "GET", "/state")[1])["episodes"]) == 2
    data.append(episode(7, seed=3))
    data.lengths = np.append(data.lengths, 7)
    state = json.loads(ask(server, "GET", "/state")[1])
    assert state["episodes"][2] == {"episode": 2, "steps": 7, "said": None, "label": None}
    assert put(server, {"episode": 2, "label": {"success": False}})[0] == 200


def test_a_port_that_is_taken_is_one_line(served):
    labelling, server, _ = served
    with pytest.raises(InputError, match="--port 0"):
        LabelServer(labelling, port=int(server.address.rpartition(":")[2]))


# -- films


def parts(data: bytes):
    head, _, rest = data.partition(b"\n")
    said, jpegs = json.loads(head), []
    for size in said["sizes"]:
        jpegs.append(np.asarray(Image.open(io.BytesIO(rest[:size]))))
        rest = rest[size:]
    assert rest == b""
    return said, jpegs


def test_a_film_sends_equal_pictures_once_and_cameras_side_by_side():
    walk = [-1.0, -1.0, 0.0, 0.0, 0.0, 1.0]
    plain = episode(5, language="push")
    obs = {
        "top": np.stack([picture(x, 16) for x in walk]),
        "wrist": np.full((6, 32, 64, 3), 200, np.uint8),
    }
    one = Episode(obs, plain.actions, np.zeros(5, np.float32), False, None, "push",
                  {"intervention": [True, False, False, True, True]})  # fmt: skip
    said, jpegs = parts(film(one, ["top", "wrist"], fps=10, height=480))
    assert said["frames"] == [0, 0, 1, 1, 1, 2] and len(jpegs) == 3
    assert {jpeg.shape for jpeg in jpegs} == {(32, 32 + 6 + 64, 3)}
    assert (jpegs[0][:, 44:].mean() - 200) < 3
    assert said["human"] == [[0, 1], [3, 5]] and said["curves"] == []
    assert (said["steps"], said["fps"], said["prompt"], said["success"]) == (5, 10, "push", None)
    _, small = parts(film(one, ["wrist"], fps=10, height=16))
    assert small[0].shape == (16, 32, 3)


def test_an_episode_without_pictures_is_curves():
    said, jpegs = parts(film(episode(3), [], fps=10, height=480))
    assert jpegs == [] and said["frames"] == [-1] * 4
    curves = {curve["name"]: curve["values"] for curve in said["curves"]}
    assert curves["reward"] == [1, 2, 3] and curves["state"] == [0, 1, 2, 3]
    assert len(curves["action"]) == 3
