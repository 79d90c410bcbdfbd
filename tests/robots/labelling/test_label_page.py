"""The page in a real browser: what a person sees, presses and clicks, and what is in the file."""

from __future__ import annotations

import numpy as np
import pytest
from browser import Tab, browsing
from toy_data import ListEpisodes, episode, picture, spec

from offline.data.episodes import Episode
from robots.datasets.labels import Label, read_labels
from robots.labelling.server import Labelling, LabelServer
from robots.labelling.sheet import Sheet

FPS = 10.0
STEPS = 5


def shown_episode(seed: int) -> Episode:
    """The bar walks from the left to the right; a human acted in steps 2 and 3."""
    plain = episode(STEPS, seed=seed, language=f"task <b>{seed}</b>")
    bars = np.stack([picture(x, 24) for x in np.linspace(-1.2, 1, STEPS + 1)])
    human = {"intervention": [False, False, True, True, False]}
    return Episode(
        obs={"camera": bars}, actions=plain.actions, rewards=plain.rewards, terminated=False,
        language=plain.language, meta=human,
    )  # fmt: skip


def dataset(count: int = 4) -> ListEpisodes:
    found = ListEpisodes([shown_episode(seed) for seed in range(count)], spec())
    found.meta = {"fps": FPS, "path": "runs/recorded"}
    return found


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def wait_for(tab: Tab, number: int) -> None:
    """Until an episode's film is on the screen."""
    tab.until(f"all && film && all.episodes[at].episode === {number} && !busy")


def test_a_person_labels_every_episode_by_keys_and_clicks(tab: Tab, tmp_path):
    sheet = Sheet(tmp_path / "labels.csv")
    server = LabelServer(Labelling(dataset, sheet))
    with server:
        tab.open(server.address)
        wait_for(tab, 0)
        assert tab.run("$('progress').getAttribute('aria-valuenow')") == "0"
        # The prompt is text, whatever it holds.
        tab.until("$('title').textContent.includes('“task <b>0</b>”')")
        # The film runs by itself, to its end, and shows the frames: the bar goes to the right.
        tab.until(f"began === null && step === {STEPS}")
        bar = "[...$('film').getContext('2d').getImageData(0, 12, 24, 1).data]"
        bright = f"{bar}.filter((v, i) => i % 4 === 0).map((v, i) => v > 128 ? i : -1)"
        tab.until(f"Math.min(...{bright}.filter(i => i >= 0)) > 15")
        tab.run("go(0)")
        tab.until(f"Math.min(...{bright}.filter(i => i >= 0)) < 3")
        assert tab.run("$('human').children.length") == 1
        assert tab.run("$('human').firstChild.style.left") == "40%"

        # The moment is where the film stands.
        tab.press("ArrowRight")
        tab.press("ArrowRight")
        tab.press("ArrowRight")
        tab.press("ArrowLeft")
        assert tab.run("$('clock').textContent") == "0.20 s of 0.50 s"
        tab.press("m")
        assert tab.run("$('moment').style.left") == "40%"
        tab.press("s", modifiers=2)  # Ctrl+S is the browser's
        assert sheet.read() == {}
        tab.press("s")
        wait_for(tab, 1)
        assert sheet.read() == {0: Label(True, 0.2)}
        assert tab.run("$('labelled').style.width") == "25%"
        tab.click("#failure")
        wait_for(tab, 2)
        tab.press("x")
        wait_for(tab, 3)
        assert sheet.read() == {0: Label(True, 0.2), 1: Label(False), 2: Label(None)}
        assert "2 of 4" not in tab.run("document.title")
        tab.press("u")  # back to what was labelled last
        wait_for(tab, 2)
        assert sheet.read() == {0: Label(True, 0.2), 1: Label(False)}
        tab.press("f")
        wait_for(tab, 3)
        tab.press("s")
        tab.until("$('counts').textContent.includes('All done')")
        assert tab.run("$('counts').textContent").startswith(
            "4 of 4 labelled: 2 successes, 2 failures, 0 skipped"
        )
        assert tab.run("[...$('episodes').children].map(b => b.className.split(' ')[0])") == [
            "yes", "no", "no", "yes",
        ]  # fmt: skip
        # An old label is seen again, and changed.
        tab.click("#episodes button:nth-child(1)")
        wait_for(tab, 0)
        assert tab.run("mark") == 0.2
        tab.click("#failure")
        tab.until("all.episodes[0].label.success === false")
        assert sheet.read()[0] == Label(False, 0.2)
        assert tab.errors == []
        tab.click("#done")
        tab.until("document.body.innerText.includes('can be closed')")
        server._thread.join(10)
        assert not server._thread.is_alive()
    assert len(read_labels(tmp_path / "labels.csv")) == 4


def test_what_is_there_already_and_what_goes_wrong_is_on_the_page(tab: Tab, tmp_path):
    found = dataset(3)
    found.success_of = lambda place: [None, True, None][place]
    found.meta = {"path": "runs/recorded"}  # no frames per second: moments mean nothing
    path = tmp_path / "labels.csv"
    path.write_text("episode,success,moment\n0,1,\n")
    with LabelServer(Labelling(lambda: found, Sheet(path))) as server:
        tab.open(server.address)
        wait_for(tab, 2)  # of 0 somebody else has said something, of 1 the dataset
        assert tab.run("$('counts').textContent") == (
            "1 of 3 labelled: 1 success, 0 failures, 0 skipped. Of 1 more the data says it"
        )
        assert tab.run("$('episodes').children[1].className") == "said-yes"
        assert tab.run("$('mark').disabled")
        path.write_text("this is no table\n")
        tab.press("s")
        trouble = tab.until("$('trouble').textContent")
        assert "expected the header" in trouble
        assert (
            tab.run("all.episodes[at].episode") == 2 and tab.run("all.episodes[at].label") is None
        )
    path.unlink()
    tab.press("f")
    tab.until("$('trouble').textContent.includes('not running any more')")
    assert not path.exists()
