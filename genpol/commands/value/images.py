"""The value of an image pipeline (`genpol value --model`): load, draw chains, learn, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from diffusion.recommended import recommended
from diffusion.values.config import ImageValueConfig
from genpol.commands.value.options import CHANGEABLE, Value, of_one_world
from genpol.runs.machine import drawing, on_this_machine

if TYPE_CHECKING:
    from diffusion.pipelines import ImagePolicy
    from diffusion.process import ReverseProcess
    from diffusion.prompts.sources import PromptSource
    from diffusion.rewards import RewardFn
    from diffusion.values.image_value import ValueAbout
    from offline.threads import Typical

SHOWN = {"value/loss": "loss", "value/rank": "rank"}
SUMMARY = {
    "train/steps": "steps",
    "data/images": "images",
    "data/reward_calls": "reward_calls",
    "time/drawing_cpu_seconds": "drawing_cpu_seconds",
    "time/learning_cpu_seconds": "learning_cpu_seconds",
}


def train_image_value(config: Value, stored: dict[str, Any]) -> None:
    """The whole run; leaves value/, checkpoints/, metrics.csv, summary.json and report.html.

    Raises:
        InputError: for what a user can mend.
        Interrupted: a signal stopped it.
    """
    _train(complete(config), stored)


def complete(config: Value) -> Value:
    """Fill in what was not given: the recommended settings of the model's family.

    Raises:
        InputError: another model than a shipped one comes without reward or prompts.
    """
    from diffusion.errors import InputError
    from genpol.commands.finetune.family import advice

    usual = recommended(config.model, "prdp", advice(config))
    names = (
        "reward", "prompts", "num_inference_steps", "guidance_scale", "max_sequence_length",
    )  # fmt: skip
    missing: dict[str, Any] = {n: usual.get(n) for n in names if getattr(config, n) is None}
    config = replace(config, **missing)
    for name in ("reward", "prompts"):
        if getattr(config, name) is None:
            raise InputError(f"--{name} is needed with --model {config.model}; see --help")
    return config


@dataclass(frozen=True)
class Loaded:
    """What a run works with, and what tells whether it is still the same."""

    policy: ImagePolicy
    process: ReverseProcess
    reward: RewardFn
    prompts: PromptSource
    identity: dict[str, Any]


def load_all(config: Value) -> Loaded:
    """Prompts, the reward and the pipeline; what is cheap to get wrong is read first.

    Raises:
        InputError: one of them cannot be used.
    """
    from diffusion.checkpoints.schedulers import replaced
    from diffusion.families import family_class
    from diffusion.loading import fingerprint
    from diffusion.lora import lora_fingerprint
    from diffusion.pipelines import ImagePolicy
    from diffusion.prompts.lengths import say_cuts_once, source_warnings
    from diffusion.prompts.sources import load_prompts
    from diffusion.rewards import load_reward
    from genpol.commands.finetune.family import family_of
    from genpol.commands.generate.drawing import load
    from genpol.runs.device import pick_device
    from genpol.runs.quiet import hide_loading_bars

    device = pick_device(config.device)
    prompts = load_prompts(
        str(config.prompts),
        column=config.prompt_column,
        held_out_fraction=config.held_out,
        eval_spec=config.eval_prompts,
    )
    reward = load_reward(str(config.reward), device=device, trust=config.trust)
    hide_loading_bars()
    pipe = load(cast(Any, config))
    kind = family_of(config) or family_class(type(pipe).__name__)
    if config.sampler != "ode" and not kind.flow:
        from diffusion.errors import InputError

        raise InputError(
            f"--sampler {config.sampler} is for flow models, and this is a diffusion model: choose "
            "how it is sampled with --scheduler and --eta"
        )
    identity = {
        "model_fingerprint": fingerprint(pipe),  # of its LoRA or --unet, too
        "prompts_fingerprint": prompts.fingerprint,
        "pipeline_class": type(pipe).__name__,
    }
    if config.lora:
        identity["lora_fingerprint"] = lora_fingerprint(config.lora)
    if changed := replaced(pipe):
        identity["scheduler_replaced"] = changed
    policy = ImagePolicy(
        pipe,
        guidance_scale=cast(float, config.guidance_scale),
        negative_prompt=config.negative_prompt,
        train="nothing",
        device=device,
        family=kind,
        height=config.height,
        width=config.width,
        max_sequence_length=config.max_sequence_length,
    )
    process = policy.process(
        cast(int, config.num_inference_steps),
        eta=config.eta,
        sampler=config.sampler,
        noise_level=config.noise_level,
    )
    say_cuts_once()
    for line in source_warnings(
        policy.family,
        prompts,
        drawn=config.num_prompts,
        evaluated=config.num_held_out,
        seed=config.seed,
        negative=config.negative_prompt if policy.family.guided(policy.guidance_scale) else None,
    ):
        print(f"warning: {line}")
    return Loaded(policy, process, reward, prompts, identity)


def work(config: Value, stored: Any) -> list[Typical]:
    """Typical operations, from the configuration of the denoiser, which is not loaded yet."""
    from diffusion.loading import denoiser_config

    return drawing(config, denoiser_config(config.model_config or str(config.model)), config.batch)


@on_this_machine(work)
def _train(config: Value, stored: dict[str, Any]) -> None:
    from tqdm import tqdm

    from diffusion.errors import InputError
    from diffusion.values.learning import ValueLearning
    from genpol.runs.interrupts import InterruptGuard
    from genpol.runs.run import Run
    from genpol.training.dataset_session import DatasetSession
    from genpol.training.image_chains import ImageChains
    from genpol.training.image_value_page import finish_pictures, write_page

    if stored and (done := steps_of_ended(config.output)) and done >= config.steps:
        print(f"{config.output} has already run {done} steps; raise --steps to go on")
        return
    loaded = load_all(config)
    require_same(loaded.identity, stored, config)
    document = {
        k: str(v) if isinstance(v, Path) else v for k, v in of_one_world(config).items()
    } | loaded.identity
    settings = ImageValueConfig(
        **{f.name: getattr(config, f.name) for f in fields(ImageValueConfig)}
    )
    chains = ImageChains(
        loaded.policy,
        loaded.process,
        loaded.reward,
        loaded.prompts,
        settings,
        memory_gb=config.memory_gb,
        batch=config.batch,
    )
    for line in chains.remarks:
        print(line)
    with (
        Run(
            config.output, document, command="value", wandb=config.wandb, resume=bool(stored)
        ) as run,
        InterruptGuard() as guard,
    ):
        if stored:
            names = [name for name in CHANGEABLE if name in document]
            run.amend({name: document[name] for name in names})
        print(chains.announcement())
        with tqdm(total=chains.images, unit="image", smoothing=0.05) as bar:
            parts = chains.draw(run, lambda: guard.stop, bar.update)
        if parts is None:
            raise guard.interrupted(
                f"stopped after {chains.drawn} of {chains.images} images; to continue: "
                f"genpol value --resume {config.output}"
            )
        try:
            learning = ValueLearning(
                about_value(config, loaded, parts[0].cond),
                settings,
                *parts,
                device=loaded.policy.device,
            )
        except InputError:  # no run can go on with these images
            chains.remove(run)
            raise
        with tqdm(total=config.steps, unit="step", smoothing=0.05) as bar:
            session = DatasetSession(
                learning,
                run,
                config,
                command="value",
                folder="value",
                meta={
                    "images": chains.images,
                    "reward_calls": chains.images + parts[0].examples.other.numel(),
                    "drawing_cpu_seconds": chains.cpu_seconds,
                },
                summary=SUMMARY,
                bar=bar,
                shown=SHOWN,
            )
            if stored:
                session.restore()
                session.begin_again()
            if session.go_on(lambda: guard.stop):
                session.finish()
        if session.steps.complete:
            finish_pictures(run, loaded.policy, learning, chains.held_out.prompts)
            write_page(run.folder)
            chains.remove(run)
    if not session.steps.complete:
        raise guard.interrupted(
            f"stopped after step {session.steps.step} of {config.steps}; to continue: "
            f"{session.how_to_go_on()}"
        )
    print(outcome(learning.average.about.held_out, run.folder))


def steps_of_ended(folder: Path) -> int | None:
    """Gradient steps of a run that has come to its end."""
    from offline.documents import read_document

    path = folder / "summary.json"
    if not path.is_file():
        return None
    return int(read_document(path, dict[str, float | None]).get("train/steps") or 0)


def require_same(identity: Mapping[str, Any], stored: Mapping[str, Any], config: Value) -> None:
    """Check that a run goes on with the model and the prompts that it began with.

    Raises:
        InputError: they have changed.
    """
    from diffusion.errors import InputError

    for key, value in identity.items():
        if stored and stored.get(key) not in (None, value):
            raise InputError(
                f'the {key.split("_")[0]} of the run in "{config.resume}" has changed since it '
                f"started ({stored[key]}, now {value}): restore it, or start a new run"
            )


def about_value(config: Value, loaded: Loaded, cond: Any) -> ValueAbout:
    """What the value's document says of it before it has learnt anything."""
    from diffusion.checkpoints.schedulers import replaced
    from diffusion.values.image_value import ValueAbout
    from diffusion.values.text import text_sizes

    pipe = loaded.policy.pipe
    names = (
        "model", "lora", "unet", "num_inference_steps", "guidance_scale", "negative_prompt",
        "sampler", "noise_level", "eta",
    )  # fmt: skip
    drawn = {name: getattr(config, name) for name in names}
    drawn["scheduler"] = replaced(pipe) or type(pipe.scheduler).__name__
    return ValueAbout(
        type(pipe).__name__,
        loaded.policy.latent_shape,
        text_sizes(cond),
        str(config.reward),
        drawn=drawn,
    )


def outcome(rows: Sequence[Mapping[str, float]], folder: Path) -> str:
    """What a run has reached, in one line."""
    from genpol.training.image_value_page import PAGE, at_share

    said = [
        f"{row.get('rank_correlation', float('nan')):.2f} with {left:.0%} of the steps to go"
        for left in (0.6, 0.3)
        if (row := at_share(rows, left)) is not None
    ]
    return (
        f"rank correlation within held-out prompts: {', '.join(said)}; value in "
        f"{folder / 'value'}; everything about the run in {folder / PAGE}"
    )
