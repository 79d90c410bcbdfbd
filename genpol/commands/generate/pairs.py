"""`genpol generate --pairs-from`: a file of preferences, best and worst of K images by a reward.

    pairs.jsonl   a row for each prompt: prompt, chosen, rejected, both scores and seeds, the model
    pairs/        the images; meanwhile also .unfinished.jsonl, from which a rerun goes on

pairs.jsonl is written at the end, whole. Until then each batch of prompts adds its rows to the
journal, once their images are on the disk.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from genpol.commands.generate.drawing import draw_images, load, pipeline_call, png, read_prompts
from genpol.commands.generate.options import Generate

JOURNAL = ".unfinished.jsonl"
NUM_IMAGES = 4
# What may differ between a run that was stopped and the one that goes on.
FREE = ("device", "threads", "output", "trust")


def draw_pairs(config: Generate, by: str) -> None:
    """Draw, score by the reward `by`, and write the pairs.

    Raises:
        InputError: for what a user can mend.
        Interrupted: a signal stopped it; the same command goes on.
    """
    from diffusion.errors import InputError
    from diffusion.rewards import load_reward
    from genpol.runs.device import pick_device
    from genpol.runs.lock import FolderLock
    from genpol.runs.quiet import hide_loading_bars
    from offline.files import disk_errors, write_beside

    count = config.num_images or NUM_IMAGES
    require_fitting(config, count)
    output, folder = config.output, config.output.with_suffix("")
    require_absent(output)
    prompts = read_pair_prompts(config)
    reward = load_reward(by, device=pick_device(config.device), trust=config.trust)
    hide_loading_bars()
    pipe = load(config)
    remedy = "Free some space, or pass another --output"
    with disk_errors(f"cannot write in {folder}", remedy):
        folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(folder):
        require_absent(output)  # once more: another process may have been at it meanwhile
        with disk_errors(f"cannot write in {folder}", remedy):
            journal = Journal(folder, settings(config, count, prompts))
            try:
                draw_rest(config, count, prompts, pipe, reward, journal)
            finally:
                journal.close()
            rows = [row for row in journal.rows if "chosen" in row]
            tied = len(journal.rows) - len(rows)
            if not rows:
                raise InputError(
                    f"all images of each prompt have the same {config.pairs_from}, so there is no "
                    "pair: use another reward, or raise --num-images"
                )
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_beside(output, text.encode())
            journal.path.unlink()
    skipped = f"; {tied} prompts skipped, whose images all have one score" if tied else ""
    gap = sum(row["chosen_score"] - row["rejected_score"] for row in rows) / len(rows)
    print(
        f"{len(rows)} pairs in {output}, their images in {folder}{skipped}; the chosen score "
        f"{gap:.4f} more on average"
    )


def require_fitting(config: Generate, count: int) -> None:
    """Raise InputError where options cannot go with --pairs-from."""
    from diffusion.errors import InputError

    if count < 2:
        raise InputError("--num-images 1 leaves nothing to prefer: use 2 or more (4 is usual)")
    for name, default in (("images_per_prompt", 1), ("best_of", 1), ("reward", None)):
        if getattr(config, name) != default:
            flag = name.replace("_", "-")
            raise InputError(
                f"--{flag} is not for --pairs-from, which keeps the best and the worst of "
                "--num-images by its own reward"
            )
    if config.output.suffix != ".jsonl":
        raise InputError(
            f"--output {config.output}: with --pairs-from it is a file of pairs, and ends in "
            ".jsonl, such as pairs.jsonl"
        )


def require_absent(output: Path) -> None:
    """Raise InputError where the pairs are there already."""
    from diffusion.errors import InputError

    if output.exists():
        raise InputError(f"{output} is there already; pass another --output")


def read_pair_prompts(config: Generate) -> list[str]:
    """The prompts of a file in order, or distinct ones of a generator, whichever side of its split
    they are on: the run that learns from the pairs holds out the same prompts as any other."""
    from diffusion.errors import InputError
    from diffusion.prompts.sources import GENERATORS, load_prompts

    if config.prompts not in GENERATORS or config.num_prompts is None:
        return read_prompts(config)
    found = load_prompts(config.prompts, held_out_fraction=0.0).held_out(
        config.num_prompts, config.seed
    )
    if len(found) < config.num_prompts:
        raise InputError(
            f'"{config.prompts}" has {len(found)} prompts, not the {config.num_prompts} asked '
            "for: lower --num-prompts, or put prompts of your own in a .txt file."
        )
    return found


def settings(config: Generate, count: int, prompts: list[str]) -> dict[str, Any]:
    """What the pairs are a function of, for the first line of the journal."""
    import hashlib

    given = {name: value for name, value in asdict(config).items() if name not in FREE}
    digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
    found = given | {"num_images": count, "prompts_sha256": digest}
    return json.loads(json.dumps(found, default=str))  # as it is read again


class Journal:
    """What is done, a line for each prompt, after a line with the settings.

    Attributes:
        rows: of the prompts in order; {"tied": true} for those without a pair.

    Raises:
        InputError: the folder holds something else, or pairs by other settings.
    """

    def __init__(self, folder: Path, wanted: dict[str, Any]) -> None:
        from diffusion.errors import InputError

        self.path = folder / JOURNAL
        self.rows: list[dict[str, Any]] = []
        if self.path.exists():
            stored, self.rows, whole = read_journal(self.path)
            if stored != wanted and stored is not None:
                odd = next(k for k in (*wanted, *stored) if stored.get(k) != wanted.get(k))
                raise InputError(
                    f"{folder} holds unfinished pairs by another --{odd.replace('_', '-')}: give "
                    "the same options to go on, or pass another --output"
                )
            self.file = open(self.path, "r+b")
            self.file.truncate(whole)  # what a kill left of a line
            self.file.seek(whole)
            if stored is None:
                self.add([wanted], count=False)
            return
        if any(path.name != ".lock" for path in folder.iterdir()):
            raise InputError(f"{folder} is not empty: pass another --output")
        self.file = open(self.path, "x+b")
        self.add([wanted], count=False)

    def add(self, rows: list[dict[str, Any]], count: bool = True) -> None:
        """Write rows; they are on the disk when this returns."""
        for row in rows:
            self.file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        if count:
            self.rows += rows

    def close(self) -> None:
        self.file.close()


def read_journal(path: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]], int]:
    """Settings (None where not even they are whole), rows, and bytes of whole lines.

    Raises:
        InputError: a whole line is not what this command writes.
    """
    from diffusion.errors import InputError

    lines, whole = [], 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                found = json.loads(line)
                if not isinstance(found, dict):
                    raise ValueError
            except ValueError as error:
                raise InputError(
                    f"{path}, line {number} is damaged: take its folder away to start anew"
                ) from error
            lines.append(found)
            whole += len(line)
    return (lines[0] if lines else None), lines[1:], whole


def draw_rest(
    config: Generate, count: int, prompts: list[str], pipe: Any, reward: Any, journal: Journal
) -> None:
    """Draw the pairs that the journal does not have.

    Raises:
        Interrupted: a signal stopped it.
    """
    from tqdm import tqdm

    from genpol.runs.interrupts import InterruptGuard

    folder, call = journal.path.parent, pipeline_call(config, pipe, prompts)
    per_batch = max(1, config.batch // count)
    with (
        InterruptGuard() as guard,
        tqdm(total=len(prompts), unit="prompt", disable=len(prompts) <= per_batch) as bar,
    ):
        bar.update(len(journal.rows))
        while len(journal.rows) < len(prompts):
            if guard.stop:
                raise guard.interrupted(
                    f"stopped after {len(journal.rows)} of {len(prompts)} prompts; the same "
                    "command goes on"
                )
            first = len(journal.rows)
            chunk = prompts[first : first + per_batch]
            each = [prompt for prompt in chunk for _ in range(count)]
            seeds = [config.seed + first * count + i for i in range(len(each))]
            images = draw_images(pipe, each, seeds, call)
            scores = reward(images, each)
            rows = [
                save_pair(
                    folder,
                    first + i,
                    prompt,
                    images[i * count : (i + 1) * count],
                    scores[i * count : (i + 1) * count].tolist(),
                    seeds[i * count : (i + 1) * count],
                    config,
                )
                for i, prompt in enumerate(chunk)
            ]
            journal.add(rows)
            bar.update(len(rows))


def save_pair(
    folder: Path,
    number: int,
    prompt: str,
    images: Any,
    scores: list[float],
    seeds: list[int],
    config: Generate,
) -> dict[str, Any]:
    """Save the best and the worst of a prompt's images; returns its row."""
    from offline.files import write_beside

    best, worst = scores.index(max(scores)), scores.index(min(scores))
    if scores[best] == scores[worst]:
        return {"prompt": prompt, "tied": True}
    names = {}
    for side, index in (("chosen", best), ("rejected", worst)):
        name = f"{number:06d}-{side}.png"
        write_beside(folder / name, png(images[index]))
        names[side] = f"{folder.name}/{name}"
    return {
        "prompt": prompt,
        **names,
        "chosen_score": scores[best],
        "rejected_score": scores[worst],
        "chosen_seed": seeds[best],
        "rejected_seed": seeds[worst],
        "reward": config.pairs_from,
        "candidates": len(scores),
        "model": config.model,
        **({"lora": config.lora} if config.lora else {}),
    }
