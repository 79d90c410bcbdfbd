"""A robot for the tables of the loop: a simulator in a process of its own, and openpi's client.

    python -m scripts.improve_robot ws://127.0.0.1:8000 --env metaworld/push-v3 --episodes 20

Nothing of the kit but the simulator is in this process. What the robot knows of the policy is what
comes through `openpi_client`. It sends an observation, executes the answer open loop, and says at
the end of an episode whether it succeeded. Where the server is gone it asks again, and goes on with
the episode once it is answered. Each episode is a row of --log: what truly happened, and how long
the longest wait was.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = (
    "episode", "layout", "success", "told", "steps", "decisions", "version", "longest_wait", "lost",
)  # fmt: skip
PAUSE = 0.05  # seconds between two attempts to reach a server that is gone


class Robot:
    """Asks one server.

    Args:
        url: ws://host:port.
        patience: seconds without an answer after which it gives up.

    Attributes:
        lost: how often a request had to be made again.
        longest: seconds of the longest wait for an answer.
    """

    def __init__(self, url: str, patience: float = 120.0) -> None:
        self._url, self._patience = url, patience
        self._client: Any = None
        self.lost, self.longest = 0, 0.0

    def connect(self) -> Any:
        """A connection by openpi's own client."""
        from openpi_client.websocket_client_policy import WebsocketClientPolicy

        return WebsocketClientPolicy(self._url)

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a message; asks again until there is one.

        Raises:
            SystemExit: none came in time; with what the server said last.
        """
        from websockets.exceptions import WebSocketException

        began = time.monotonic()
        while True:
            try:
                if self._client is None:
                    self._client = self.connect()
                answer = self._client.infer(dict(message))
            except (OSError, WebSocketException, RuntimeError) as error:
                # RuntimeError is what openpi's client makes of a line of text: no answer either.
                if not isinstance(error, RuntimeError):
                    self._client = None
                if time.monotonic() - began > self._patience:
                    raise SystemExit(f"{self._url} does not answer: {error}") from error
                self.lost += 1
                time.sleep(PAUSE)
            else:
                self.longest = max(self.longest, time.monotonic() - began)
                return answer

    def play(self, env: Any, layout: int, tell: bool | None) -> dict[str, Any]:
        """One episode.

        Args:
            env: the simulator.
            layout: seed of its layout.
            tell: whether to say at the end what is true (True) or the contrary (False); None says
                only that the episode is over.
        """
        self.lost, self.longest = 0, 0.0
        obs, _ = env.reset(seed=layout)
        success = over = False
        steps, decisions, version = 0, 0, ""
        done: list[np.ndarray] = []
        while not over:
            answer = self.ask(obs)
            version = str(answer.get("steer", {}).get("version", ""))
            decisions += 1
            done = []
            for action in np.asarray(answer["actions"], np.float32):
                obs, _, terminated, truncated, info = env.step(action)
                done.append(action)
                steps, success = steps + 1, bool(info["success"])
                over = success or terminated or truncated
                if over:
                    break
        executed, told = np.stack(done), ""
        if tell is None:
            self.ask({"reset": True, "executed": executed})
        else:
            said = success if tell else not success
            # A success is over: what it looks like is its last observation.
            self.ask({**(obs if said else {}), "success": said, "executed": executed})
            told = str(int(said))
        return {
            "layout": layout, "success": int(success), "told": told, "steps": steps,
            "decisions": decisions, "version": version, "longest_wait": round(self.longest, 3),
            "lost": self.lost,
        }  # fmt: skip

    def close(self) -> None:
        """Leave."""
        if self._client is not None:
            self._client._ws.close()


def tells(seed: int, episode: int, labelled: float, wrong: float) -> bool | None:
    """What the robot says at the end of an episode, see `Robot.play`; a function of the seed.

    Args:
        seed: of the run.
        episode: its number.
        labelled: share of the episodes after which it says anything.
        wrong: share of these after which it says the contrary.
    """
    draws = np.random.default_rng([seed, episode, 18]).random(2)
    if draws[0] >= labelled:
        return None
    return bool(draws[1] >= wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--env", required=True)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="number of the first episode")
    parser.add_argument("--purpose", default="deploy", help="which layouts; see layout_seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--image-size", type=int, help="send pictures of this size, and no state")
    parser.add_argument("--labelled", type=float, default=1.0)
    parser.add_argument("--wrong", type=float, default=0.0)
    parser.add_argument("--patience", type=float, default=120.0)
    parser.add_argument("--log", type=Path, required=True)
    options = parser.parse_args()
    from robots.envs.make import layout_seed, make_env

    cameras = {"image": options.image_size} if options.image_size else None
    env: Any = make_env(options.env, max_steps=options.max_steps, image_keys=cameras)
    if cameras:
        env = _Seen(env, tuple(cameras))
    robot = Robot(options.url, options.patience)
    options.log.parent.mkdir(parents=True, exist_ok=True)
    with open(options.log, "a", newline="") as file:
        rows = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if file.tell() == 0:
            rows.writeheader()
        for episode in range(options.first, options.first + options.episodes):
            layout = layout_seed(options.purpose, options.seed, episode)
            tell = tells(options.seed, episode, options.labelled, options.wrong)
            rows.writerow({"episode": episode, **robot.play(env, layout, tell)})
            file.flush()
            os.fsync(file.fileno())
    robot.close()
    env.close()


class _Seen:
    """An environment of which a robot sees some observations only."""

    def __init__(self, env: Any, keys: tuple[str, ...]) -> None:
        self._env, self._keys = env, keys

    def reset(self, *, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        obs, info = self._env.reset(seed=seed)
        return self._of(obs), info

    def step(self, action: np.ndarray) -> tuple[Any, ...]:
        obs, *rest = self._env.step(action)
        return self._of(obs), *rest

    def close(self) -> None:
        self._env.close()

    def _of(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        return {key: obs[key] for key in self._keys}


if __name__ == "__main__":
    main()
