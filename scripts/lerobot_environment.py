"""Makes an environment with the real LeRobot 0.4, for the slow tests that run it.

    python -m scripts.lerobot_environment DIR
    GENPOL_LEROBOT_PYTHON=DIR/bin/python python -m pytest -m slow tests/robots/test_real_lerobot.py

LeRobot pins other versions than genpol is tested with, so it stands in an environment of its own,
into which genpol comes by PYTHONPATH. It takes about 6 GB and some minutes. LeRobot itself goes in
without its dependencies: it asks for an older torch than there is for some machines, and for
packages of robots' hardware.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

STEPS: tuple[tuple[str, ...], ...] = (
    ("torch==2.14.1", "torchvision==0.29.1"),
    ("--no-deps", "lerobot==0.4.4"),
    (
        "datasets<5", "diffusers<0.36", "huggingface-hub<0.36", "transformers<5", "accelerate",
        "einops", "av<16", "jsonlines", "packaging<26", "draccus==0.10.0", "deepdiff", "termcolor",
        "imageio[ffmpeg]", "opencv-python-headless", "pyserial<4",
    ),
    # what genpol needs
    (
        "tyro", "h5py", "pydantic>=2.5", "annotated-types", "scipy", "matplotlib", "peft<0.18",
        "websockets", "msgpack", "gymnasium",
    ),
)  # fmt: skip
CHECK = "import lerobot.datasets.lerobot_dataset, lerobot.policies.factory, av, genpol"


def commands(folder: Path) -> list[list[str]]:
    """What is run, in order."""
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir"]
    return [
        [sys.executable, "-m", "venv", str(folder)],
        *([*install, *step] for step in STEPS),
        [python, "-c", CHECK],
    ]


def main(arguments: list[str] | None = None) -> None:
    """Make it; stops at the first command that fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the environment; made if absent")
    folder = parser.parse_args(arguments).folder.expanduser().absolute()
    root = Path(__file__).parents[1]
    for command in commands(folder):
        print(" ".join(command), flush=True)
        try:
            subprocess.run(command, check=True, cwd=root, timeout=3600)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise SystemExit(f"{' '.join(command)}: {error}") from error
    print(f"export GENPOL_LEROBOT_PYTHON={folder}/bin/python")


if __name__ == "__main__":
    main()
