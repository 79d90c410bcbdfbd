"""`genpol steer`: what value steering does for a policy, on paired episodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genpol.commands.chunk_options import CHUNKS, chunks, policy_chunk
from genpol.commands.steer.options import Steer, check

if TYPE_CHECKING:
    from genpol.steering.paired_episodes import Rollouts
    from genpol.steering.result import SteerResult
    from genpol.steering.session import Arms


def run(config: Steer) -> None:
    """Run every arm; write summary.json, episodes.csv, videos and index.html; print the result."""
    from genpol.runs.quiet import hush

    hush()
    found = steer(config)
    summary = found.summary()
    for arm in ("base", "steered", "mode", "random", "filtered"):
        if f"steer/success_{arm}" in summary:
            share, low, high = (
                summary[f"steer/success_{arm}{end}"] for end in ("", "_low", "_high")
            )
            print(f"{arm:>9}: {100 * share:5.1f} %   [{100 * low:.1f}, {100 * high:.1f}]")
    print(f"p = {summary['steer/p_value']:.2g} (steered against base, paired)")
    if found.diversity:
        print(f"note: {found.diversity}")
    print(found.advice())
    print(f"open {(config.output / 'index.html').resolve()}")


def require_success(env: Any) -> None:
    """Check that episodes can be judged.

    Raises:
        InputError: the environment never says whether its task was achieved.
    """
    from offline.errors import InputError

    if not env.has_success:
        raise InputError(
            f'steering is judged by success, and "{env.name}" does not say when its task is '
            'achieved: pass an environment whose info has "success"'
        )


def steer(config: Steer) -> SteerResult:
    """Compare a policy with and without steering, as `genpol steer` does; leaves the run folder.

    Raises:
        InputError: for what a user can mend; nothing has been written then.
        Interrupted: a signal stopped it; the episodes that had ended are in episodes.csv.
    """
    from genpol.commands.steer.inputs import (
        WithLanguage,
        embed,
        learn_chunk,
        load_policy,
        load_values,
        require_plan,
        tuned,
    )
    from genpol.runs.device import pick_device
    from genpol.runs.interrupts import InterruptGuard
    from genpol.runs.processor import on_the_cpu
    from genpol.runs.run import Run
    from genpol.steering.report import write_report
    from genpol.steering.session import (
        Arms,
        first_observations,
        latencies,
        make_select,
        result,
    )
    from offline.files import disk_errors
    from offline.threads import choose, in_threads, typical_of
    from robots.envs.make import make_env
    from robots.serving.per_client import find_weights

    check(config)
    asked = config.device
    config = replace(config, device=pick_device(asked))
    values, env_name = load_values(config)
    probe = make_env(env_name, max_steps=config.max_steps)
    require_success(probe)
    language = config.instruction or probe.language
    policy = load_policy(config.policy, config, probe, language, policy_chunk(config, values))
    filtered = (
        load_policy(config.filtered, config, probe, language, policy_chunk(config, values))
        if config.filtered
        else None
    )
    image_keys = {
        key: shape[0]
        for source in (values, policy)
        for key, shape in (getattr(source, "obs_shapes", None) or {}).items()
        if len(shape) == 3
    }
    embedding = embed(language, values, policy, config)

    def new_env() -> Any:
        env = make_env(env_name, max_steps=config.max_steps, image_keys=image_keys or None)
        return env if embedding is None else WithLanguage(env, embedding)

    if config.score == "windows":
        learn_chunk(policy, new_env)
    values, overlap = chunks(config, values, policy.spec.chunk)
    require_plan(filtered, values.spec.chunk)
    parts = [policy, filtered, *getattr(values, "critics", [values])]
    weights = [weight for part in parts for weight in find_weights(part)]
    if config.threads is not None or on_the_cpu(config.device):  # else PyTorch's own number stays
        few = choose(config.threads, typical_of(weights, config.num_candidates))
        config = replace(config, threads=few)
    with in_threads(config.threads):
        chosen = tuned(config, policy, values) if config.tune else {}
    select = make_select(chosen.get("temperature", config.temperature), config.margin)
    arms = Arms(
        policy,
        values,
        select,
        num_candidates=config.num_candidates,
        gate=chosen.get("gate", config.gate),
        deadline=config.deadline_ms / 1e3 if config.deadline_ms else None,
        candidate_noise=config.candidate_noise,
        filtered=filtered,
        overlap=overlap,
    )
    document = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}
    document["device"] = asked
    path = config.output / "episodes.csv"
    document |= {"env": env_name} | chosen
    with (
        in_threads(config.threads),
        Run(config.output, document, command="steer", wandb=config.wandb) as folder,
        InterruptGuard() as guard,
    ):

        def keep(rollouts: dict[str, Rollouts]) -> None:
            if any(arm.ended.any() for arm in rollouts.values()):
                with disk_errors(f"cannot write {path}", "Free some space"):
                    write_episodes(rollouts, path)
                folder.used = True

        rollouts, total = episodes(config, arms, new_env, lambda: guard.stop, keep)
        ended = sum(int(arm.ended.sum()) for arm in rollouts.values())
        if not ended:
            raise guard.interrupted("stopped before the first episode had ended")
        if ended < total:
            raise guard.interrupted(
                f"stopped after {ended} of {total} episodes, which are in {path}; to run all of "
                "them, pass another --output"
            )
        seconds = latencies(arms, first_observations(new_env, rollouts["base"].seeds[:20].tolist()))
        with disk_errors(f"cannot write in {config.output}", "Free some space"):
            found = result(
                arms,
                rollouts,
                seconds,
                title=f"{config.policy} on {env_name}",
                settings=settings(config, chosen),
                folder=config.output,
            )
            write_report(found, config.output)
        summary = found.summary()
        folder.log(0, summary)
        for caption, film in found.videos:
            name = f"steer/{Path(film).stem}"
            folder.log_video(0, name, config.output / film, caption)
        folder.summary(summary)
    return found


def episodes(
    config: Steer,
    arms: Arms,
    new_env: Any,
    stop: Callable[[], bool],
    after: Callable[[dict[str, Rollouts]], None],
) -> tuple[dict[str, Rollouts], int]:
    """Every arm's episodes, and how many there are to be in all; see `run_arms`."""
    from tqdm import tqdm

    from genpol.steering.session import run_arms
    from robots.envs.make import layout_seed

    names: list[str] = [*dict.fromkeys(("base", "steered", *config.arms))]
    names += ["filtered"] if arms.filtered is not None else []
    seeds = [layout_seed("evaluate", config.seed, i) for i in range(config.episodes)]
    with tqdm(total=len(names) * len(seeds), unit="episode") as bar:

        def progress(arm: str) -> Any:
            bar.set_postfix(arm=arm)
            return bar.update

        rollouts = run_arms(
            arms,
            names,
            new_env,
            seeds=seeds,
            seed=config.seed,
            parallel=config.parallel,
            record=range(min(config.videos, len(seeds))),
            progress=progress,
            stop=stop,
            after=after,
        )
    return rollouts, len(names) * len(seeds)


def settings(config: Steer, chosen: dict[str, Any]) -> dict[str, Any]:
    """What the page says of how the episodes were run."""
    shown: dict[str, Any] = {"value": ", ".join(config.value), "candidates": config.num_candidates}
    if config.margin is not None:
        shown["margin"] = config.margin
    else:
        shown["temperature"] = chosen.get("temperature", config.temperature)
    if (gate := chosen.get("gate", config.gate)) is not None:
        shown["gate"] = gate
    if config.candidate_noise:
        shown["candidate noise"] = config.candidate_noise
    if config.deadline_ms:
        shown["deadline, ms"] = config.deadline_ms
    if config.score != "first":
        shown["score"] = config.score
    for name in CHUNKS[1:]:
        if found := getattr(config, name):
            shown[name.replace("_", " ")] = found
    return shown | {"seed": config.seed}


def write_episodes(rollouts: dict[str, Rollouts], path: Path) -> None:
    """One row for each episode that ended, of each arm."""
    import csv
    import io

    from offline.files import write_beside

    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("arm", "initial_state", "success", "return", "steps"))
    for name, arm in rollouts.items():
        for i in arm.ended.nonzero()[0]:
            seed, success, steps = int(arm.seeds[i]), int(arm.success[i]), int(arm.lengths[i])
            rows.writerow((name, seed, success, f"{arm.returns[i]:.6g}", steps))
    write_beside(path, text.getvalue().encode())
