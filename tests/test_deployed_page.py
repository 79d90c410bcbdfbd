"""docs/DEPLOYED.md: every command and every file of the page, in order, on the stand-in robot.

Commands run in this process as printed, at smaller sizes. The browser's part is done by the
requests that its page makes (a test of its own drives a real browser).
"""

from __future__ import annotations

import http.client
import json
import runpy
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from chat_servers import chatting, says
from doc_blocks import ROOT, blocks, lines, with_options, words

PAGE = ROOT / "docs" / "DEPLOYED.md"
PATIENCE = 240.0  # seconds
SMALL = {
    "--steps": "20", "--batch-size": "8", "--hidden": "8", "--wandb": "disabled", "--device": "cpu",
}  # fmt: skip
SMALLER = {
    "value": SMALL,
    "train": {
        "--offline-updates": "4", "--batch-size": "8", "--hidden": "8", "--value-ensemble": "2",
        "--subset": "1", "--wandb": "disabled", "--device": "cpu", "--num-candidates": "4",
    },
    "serve": {"--watch-every": "0.2", "--num-candidates": "4", "--device": "cpu"},
    "improve": {
        "--steps": "20", "--every": "4", "--device": "cpu", "--num-candidates": "4",
        "--episodes": "4",
    },
}  # fmt: skip
LEARN_OPTIONS = "--learn-options=--batch-size 8 --hidden 8"
LABELLED = 12  # episodes that the person labels; judges have the others


def free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Reader:
    """Somebody who follows the page."""

    def __init__(self, stack: ExitStack) -> None:
        from stand_in_robot import Hesitant

        from robots.serving.serve_policy import serve_policy

        self.stack, self.serving = stack, ExitStack()
        upstream = stack.enter_context(serve_policy(Hesitant(), port=0))
        vlm, self.asked = stack.enter_context(chatting(lambda body: says("9")))
        self.port = free_port()
        self.places = {
            "ws://localhost:8001": upstream.address,
            "http://localhost:8002/v1": vlm,
            "8000": str(self.port),
        }
        self.ran: list[str] = []

    def follow(self, line: str) -> None:
        """One line of a shell block."""
        for written, here in self.places.items():
            line = line.replace(written, here)
        command = words(line)
        self.ran.append(" ".join(command[:2]))
        if command[0] == "python":
            return self.robot(command[1:])
        assert command[0] == "genpol", f"the page has a command that is run nowhere: {line}"
        name = command[1]
        command = with_options(command, SMALLER.get(name, {}))
        if "runs/recorded" in command and name != "serve":
            self.settled()
        if name == "serve":
            return self.serve(command)
        if name == "improve":
            return self.improve(command)
        if name == "label" and "--success" not in command:
            return self.label(command)
        return self.genpol(command)

    def genpol(self, command: list[str]) -> None:
        from genpol.cli import main

        assert main(command[1:]) == 0, command
        if command[1] == "value":
            self.until(lambda: self.version(), "the server took up no value")

    def serve(self, command: list[str]) -> None:
        from genpol.commands.parsing import parse
        from genpol.commands.serve.command import make_server
        from genpol.commands.serve.options import Serve

        self.serving.close()  # one after the other, as the page says
        self.serving = self.stack.enter_context(ExitStack())
        self.serving.enter_context(make_server(parse(Serve, command[2:], "genpol serve")))

    def robot(self, command: list[str]) -> None:
        """python robot.py N PORT, with fewer episodes."""
        before, sys.argv = sys.argv, [command[0], "6", command[2]]
        try:
            runpy.run_path(command[0], run_name="__main__")
        finally:
            sys.argv = before

    def version(self) -> str:
        """Which version of the value decides for a robot that comes now."""
        from openpi_client.websocket_client_policy import WebsocketClientPolicy
        from stand_in_robot import Robot

        client, robot = WebsocketClientPolicy("127.0.0.1", self.port), Robot()
        try:
            answer = client.infer(robot.observe())
            client.infer({"executed": answer["actions"][:0], "reset": True})  # nothing was done
            return str(answer.get("steer", {}).get("version", ""))
        finally:
            client._ws.close()

    def label(self, command: list[str]) -> None:
        """The page, by the requests that it makes: the first episodes, as they truly were."""
        from stand_in_robot import Robot

        from genpol.cli import main

        port = free_port()
        thread = threading.Thread(target=main, args=([*command[1:], "--port", str(port)],))
        thread.daemon = True
        thread.start()
        state = self.until(lambda: self.ask(port, "GET", "/state"), "no page to label on")
        assert len(state["episodes"]) == len(Robot.truth) and state["marks"]
        for one, success in list(zip(state["episodes"], Robot.truth, strict=True))[:LABELLED]:
            said = {"success": success, "moment": None}
            self.ask(port, "POST", "/label", {"episode": one["episode"], "label": said})
        self.ask(port, "POST", "/done", {})
        thread.join(PATIENCE)
        assert not thread.is_alive()

    def settled(self) -> None:
        """Every episode that the robot has played is in the recording."""
        from stand_in_robot import Robot

        from robots.datasets.recorded import RecordedEpisodes

        def there() -> bool:
            try:
                return len(RecordedEpisodes("runs/recorded")) == len(Robot.truth)
            except ValueError:  # no episode has ended yet
                return False

        self.until(there, "episodes are missing in the recording")

    def improve(self, command: list[str]) -> None:
        """All at once, until it has learnt from what is there already."""
        from genpol.cli import main

        self.serving.close()
        assert main([*command[1:], LEARN_OPTIONS]) == 0

    def ask(self, port: int, method: str, path: str, body: Any = None) -> Any:
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            text = None if body is None else json.dumps(body)
            link.request(method, path, text, {"Content-Type": "application/json"})
            answer = link.getresponse()
            said = answer.read()
            assert answer.status == 200, said
            return json.loads(said)
        except ConnectionRefusedError:
            return None
        finally:
            link.close()

    def until(self, there: Any, else_: str) -> Any:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if found := there():
                return found
            time.sleep(0.1)
        raise AssertionError(else_)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_of_the_page_runs_in_order(tmp_path, monkeypatch, capsys):
    pytest.importorskip("openpi_client.websocket_client_policy")
    import stand_in_robot

    from robots.datasets.labels import read_labels
    from robots.datasets.recorded import RecordedEpisodes

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "my_robot", stand_in_robot)
    monkeypatch.setattr(stand_in_robot.Robot, "truth", [])
    stand_in_robot.write_demos(tmp_path / "demos")
    with ExitStack() as stack:
        reader = Reader(stack)
        for block in blocks(PAGE):
            if block.language == "python":
                name = block.text.split("\n", 1)[0].removeprefix("# ")
                assert name.endswith(".py"), f"line {block.line}: which file is this?"
                Path(name).write_text(block.text, encoding="utf-8")
        for block in blocks(PAGE):
            for line in lines(block) if not block.language else ():
                print(f"$ {line}")
                reader.follow(line)
        assert len(reader.asked) >= LABELLED // 2
    demos = read_labels("demos/labels.csv")
    assert len(demos) == 8 and all(label.success for label in demos.values())
    recorded = RecordedEpisodes("runs/recorded")
    truth = stand_in_robot.Robot.truth
    assert len(recorded) == len(truth) and True in truth and False in truth
    assert recorded[0].obs["state"].shape[1:] == (3,) and len(recorded.decisions(0)) > 0
    assert (tmp_path / "runs" / "improve" / "index.html").is_file()
    assert {"genpol improve", "genpol train", "genpol label", "python robot.py"} <= set(reader.ran)


def test_the_page_names_the_files_that_it_runs():
    files = {b.text.split("\n", 1)[0].removeprefix("# ") for b in blocks(PAGE, "python")}
    run = [words(line) for block in blocks(PAGE, "") for line in lines(block)]
    assert files == {"robot.py", "judges.py"}
    assert {word[1] for word in run if word[0] == "python"} == {"robot.py"}
    assert any("judges:lifted" in word for word in run)
