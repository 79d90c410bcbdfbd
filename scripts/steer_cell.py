"""What the steering table is made of: demonstrations, critics and policies of a task and seed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHUNK = 4
SETTINGS: dict[str, Any] = {
    "episodes": 120,
    "sloppy_fraction": 0.67,
    "clone_steps": 4000,
    "robomimic_steps": 3000,
    "octo_steps": 4000,
    "value_steps": 5000,
    "temperature": 0.3,
}


class Cell:
    """The demonstrations, critics and policies of one task and training seed, made when needed."""

    def __init__(self, task: str, seed: int, work: Path) -> None:
        self.task, self.seed = task, seed
        name, _, self.side = task.partition("@")
        self.env = f"metaworld/{name}"
        self.folder = work / task / f"seed{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def once(self, name: str, make: Callable[[Path], None]) -> Path:
        """The artefact `name`, made beside and renamed; its seconds are kept in a file."""
        path = self.folder / name
        if not path.exists():
            partial = path.with_name(f"partial-{os.getpid()}-{path.name}")
            started = time.process_time()
            make(partial)
            os.replace(partial, path)
            path.with_name(path.name + ".seconds").write_text(str(time.process_time() - started))
            print(f"  made {path} in {time.process_time() - started:.0f} CPU-seconds", flush=True)
        return path

    def seconds(self, name: str) -> float:
        try:
            return float((self.folder / f"{name}.seconds").read_text())
        except OSError:
            return float("nan")

    def demos(self) -> Path:
        def make(path: Path) -> None:
            genpol(
                "collect --env", self.env, "--episodes", SETTINGS["episodes"],
                "--sloppy-fraction", SETTINGS["sloppy_fraction"], "--seed", self.seed,
                "--bias-side", self.side or "habit", "--output", path,
            )  # fmt: skip

        return self.once("demos.hdf5", make)

    def chunked(self) -> Path:
        """The demonstrations with flattened chunks, for robomimic."""

        def make(path: Path) -> None:
            genpol("data chunk", self.demos(), "--action-chunk", CHUNK, "--output", path)

        return self.once("demos-chunked.hdf5", make)

    def value(self, critic: str) -> Any:
        from offline.critics.value import ValueFunction

        def make(path: Path) -> None:
            genpol(
                "value --data", self.demos(), "--critic", critic, "--steps",
                SETTINGS["value_steps"], "--seed", self.seed, "--output", path,
                "--wandb", "disabled",
            )  # fmt: skip

        return ValueFunction.load(self.once(critic, make))

    def policy(self, kind: str, filtered: bool = False) -> Any:
        name = kind + ("-filtered" if filtered else "")
        if kind == "robomimic":
            return self._robomimic(name, filtered)
        if kind == "octo":
            return self._octo(name, filtered)
        from genpol.policies.policy import load_policy

        def make(path: Path) -> None:
            genpol(
                "clone --policy", kind, "--data", self.demos(), "--steps",
                SETTINGS["clone_steps"], "--seed", self.seed, "--output", path,
                "--filter", "success" if filtered else "all", "--wandb", "disabled",
            )  # fmt: skip

        return load_policy(self.once(name, make))

    def _robomimic(self, name: str, filtered: bool) -> Any:
        from robots.envs.make import make_env
        from robots.policies.load import load_black_box
        from scripts import robomimic_train

        def make(path: Path) -> None:
            path.mkdir()  # the checkpoint, and a file beside it that says what it was made of
            robomimic_train.train(
                self.chunked(),
                path / "model.pth",
                steps=SETTINGS["robomimic_steps"],
                seed=self.seed,
                algorithm="bc_rnn_gmm",
                filter_key="success" if filtered else "train",
            )

        path = self.once(name, make)
        return load_black_box(
            f"robomimic:{path / 'model.pth'}",
            trust=True,
            env_spec=make_env(self.env).action_spec,
            action_chunk=CHUNK,
        )

    def _octo(self, name: str, filtered: bool) -> Any:
        from robots.envs.make import make_env
        from robots.policies.load import load_black_box
        from scripts import octo_standin

        def make(path: Path) -> None:
            octo_standin.train(
                self.demos(),
                path,
                steps=SETTINGS["octo_steps"],
                seed=self.seed,
                filter_success=filtered,
            )

        path = self.once(name, make)
        env = make_env(self.env)
        return load_black_box(
            f"octo:{path}?model=scripts.octo_standin:OctoStandIn",
            trust=True,
            env_spec=env.action_spec,
            action_chunk=CHUNK,
            language=env.language,
        )


def genpol(*words: Any) -> None:
    """Run one command of the kit in this process; its options as a user would write them."""
    from genpol.cli import main

    line = [part for word in words for part in (word.split() if isinstance(word, str) else [word])]
    if code := main([str(word) for word in line]):
        raise SystemExit(code)
