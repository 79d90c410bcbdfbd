"""`genpol finetune`: reward fine-tune an image pipeline and leave LoRA weights behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from diffusion.config import check, policy_settings
from diffusion.recommended import recommended
from genpol.commands.finetune.options import BEFORE, RESUMABLE, Finetune
from genpol.runs.machine import drawing, on_this_machine

if TYPE_CHECKING:
    from diffusion.families.family import Family
    from diffusion.finetune import Finetuner
    from diffusion.objective import Objective
    from diffusion.prompts.sources import PromptSource
    from diffusion.ranks import Ranks
    from diffusion.rewards import RewardFn
    from offline.threads import Typical


LARGE = 100_000_000  # parameters of a denoiser whose freed memory goes back to the system
OWN = ("output", "resume", "threads", "device", "wandb")  # may differ between processes


@dataclass(frozen=True)
class Given:
    """Objects that stand in for what options name; of those that are None, the options count."""

    pipeline: Any = None
    """A diffusers pipeline, as `diffusion.loading.load_pipeline` returns one."""
    reward: RewardFn | None = None
    gold: Mapping[str, RewardFn] | None = None
    prompts: PromptSource | Sequence[str] | None = None
    objective: Objective | None = None
    family: type[Family] | None = None


def run(config: Finetune) -> None:
    """Run or resume a fine-tuning run; see `train` for what it leaves behind."""
    from genpol.runs.quiet import hush

    hush()
    from genpol.runs.resuming import restored
    from genpol.runs.several import several

    if config.plan:
        from genpol.commands.finetune.plan import show_plan

        if config.resume:
            config, _ = restored(config, "finetune", RESUMABLE)
        config = complete(config)
        check(config)
        return show_plan(config)
    with several(config.device) as ranks:
        stored: dict[str, Any] = {}
        if config.resume:  # whose folder only the first process needs to have
            asked = config
            config, stored = ranks.by_main(lambda: restored(asked, "finetune", RESUMABLE))
            config = replace(config, **{k: v for k, v in BEFORE.items() if k not in stored})
        config = complete(config)
        check(config)
        train(config, stored, ranks=ranks)


def complete(config: Finetune, given: Given | None = None) -> Finetune:
    """Fill in what was not given: the recommended settings of the model's family.

    Raises InputError when a number is out of its range, or another model than the shipped one comes
    without reward or prompts.
    """
    from diffusion.errors import InputError
    from genpol.commands.finetune.family import advice
    from genpol.commands.finetune.memory import for_device
    from genpol.finetuning.control_options import parse_scales
    from offline.option_check import check_numbers

    check_numbers(config)
    parse_scales(config.guidance_control, config.model)  # before anything is loaded
    given = given or Given()
    require_fitting_pairs(config)
    paired = config.pairs is not None
    facts = advice(config, given.pipeline, given.family)
    usual = recommended(config.model, config.algorithm, facts, pairs=paired)
    config = for_device(config, usual).resolved(usual)
    if config.lora and (config.lora_alpha is not None or config.lora_dora):
        raise InputError(
            "--lora-alpha and --lora-dora are of a new LoRA; a run from --lora keeps those that "
            "it has"
        )
    if config.export and config.train == "full":
        raise InputError(f"--export {config.export} is of a LoRA, and --train full trains none")
    for name in ("reward", "prompts"):
        if getattr(config, name) is None and not paired:
            raise InputError(f"--{name} is needed with --model {config.model}; see --help")
    return config


def require_fitting_pairs(config: Finetune) -> None:
    """Raise InputError where options cannot go with --pairs, or need them."""
    from diffusion.errors import InputError

    if config.pairs is None:
        if config.pair_columns is not None:
            raise InputError("--pair-columns names the columns of --pairs, which is not there")
        return
    if config.algorithm != "dpo":
        raise InputError(
            f"--pairs is for --algorithm dpo; {config.algorithm} learns from images that it draws "
            "and a reward"
        )
    if config.prompts is not None:
        raise InputError(
            "--pairs has the prompts to train on: leave out --prompts. Prompts to draw at "
            "evaluations are given with --eval-prompts"
        )


def build(
    config: Finetune, given: Given | None = None, ranks: Ranks | None = None
) -> tuple[Finetuner, dict[str, str]]:
    """Load model, reward and prompts, or take what is given; returns the tuner and fingerprints
    for config.json. `ranks` are the processes of the run."""
    from diffusion.checkpoints.schedulers import replaced
    from diffusion.finetune import Finetuner
    from diffusion.judging import not_here, parse_ranks
    from diffusion.loading import fingerprint, load_pipeline, prepare_pipeline
    from diffusion.lora import lora_fingerprint
    from diffusion.offload import parse_offload
    from diffusion.pipelines import ImagePolicy
    from diffusion.preference_tuning import PreferenceTuner
    from diffusion.preferences.source import load_pairs
    from diffusion.prompts.lengths import say_cuts_once, source_warnings
    from diffusion.prompts.sources import WORLDS, load_prompts
    from diffusion.ranks import Ranks
    from diffusion.rewards import as_reward, load_reward, split_expressions
    from diffusion.sharding import requested
    from diffusion.speed import chosen, speed_of
    from genpol.commands.finetune.family import family_of
    from genpol.finetuning.stopping import watched
    from genpol.runs.allocator import give_back_freed_memory
    from genpol.runs.device import pick_device
    from genpol.runs.quiet import hide_loading_bars
    from offline.threads import in_threads

    given, ranks = given or Given(), ranks or Ranks()
    device, at = (
        pick_device(config.device, ranks.local),
        parse_ranks(config.reward_ranks, ranks.count),
    )
    several: dict[str, Any] = {"ranks": ranks, "reward_ranks": at}
    # What is cheap to get wrong is read first: prompts, then the reward, then the model.
    sharding, speed = requested(), speed_of(config, device)
    prompts: Any = given.prompts
    if config.pairs is not None:
        prompts = load_pairs(
            config.pairs,
            columns=config.pair_columns,
            held_out_fraction=config.held_out,
            eval_spec=config.eval_prompts,
            eval_column=config.prompt_column,
        )
        print(prompts.about)
    if not hasattr(prompts, "held_out"):
        prompts = load_prompts(
            config.prompts if prompts is None else prompts,
            column=config.prompt_column,
            held_out_fraction=config.held_out,
            eval_spec=config.eval_prompts,
        )
    here, reward = ranks.index in at, cast("RewardFn | None", None)
    if not here and (given.reward or config.reward) is not None:
        reward = not_here
    elif given.reward is not None:  # checked as a loaded one is
        reward = as_reward(given.reward, config.reward, device=device, combine=config.combine)
    elif config.reward is not None:
        reward = load_reward(
            config.reward, device=device, trust=config.trust, combine=config.combine
        )
    names = config.gold_reward
    if names is None and config.prompts in WORLDS:
        names = "gold,gold_wholly,attributes_hard"
    gold = {
        name: load_reward(name, device=device, trust=config.trust) if here else not_here
        for name in (split_expressions(names) if names else [])
    }
    for name, one in (given.gold or {}).items():
        gold[name] = as_reward(one, name, device=device) if here else not_here
    if config.stop_when is not None:
        watched(config.stop_when, [*(["reward"] if reward is not None else []), *gold])
    lora = lora_fingerprint(config.lora) if config.lora else None
    hide_loading_bars()
    own = family_of(config, given.family)
    if given.pipeline is not None:
        pipe = prepare_pipeline(given.pipeline, scheduler=config.scheduler, family=own)
    else:
        pipe = load_pipeline(
            config.model,
            dtype=config.dtype,
            scheduler=config.scheduler,
            variant=config.variant,
            model_config=config.model_config,
            family=own,
        )
    with in_threads(None if config.threads is None else 1):  # a sum's last bits depend on it
        weights = fingerprint(pipe)
    identity = {
        "model_fingerprint": weights,
        "prompts_fingerprint": prompts.fingerprint,
        "pipeline_class": type(pipe).__name__,
    }
    if changed := replaced(pipe):
        identity["scheduler_replaced"] = changed
    if lora:
        identity["lora_fingerprint"] = lora
    policy = ImagePolicy(
        pipe,
        **policy_settings(config),
        start_lora=config.lora,
        reference_on=config.reference_on,
        sharding=sharding,
        speed=speed,
        gradient_checkpointing=config.gradient_checkpointing,
        autocast=config.autocast,
        device=device,
        seed=config.seed,
        family=own,
        offload=parse_offload(config.offload),
    )
    identity |= chosen(config, policy.speed, device)
    if device == "cpu" and sum(one.numel() for one in policy.denoiser.parameters()) >= LARGE:
        give_back_freed_memory()
    if config.pairs is not None:
        return PreferenceTuner(policy, reward, prompts, config, gold, **several), identity
    say_cuts_once()
    for line in source_warnings(
        policy.family,
        prompts,
        drawn=config.prompts_per_epoch,
        evaluated=config.eval_images,
        seed=config.seed,
        negative=config.negative_prompt if policy.family.guided(config.guidance_scale) else None,
    ):
        print(f"warning: {line}")
    return Finetuner(policy, reward, prompts, config, gold, given.objective, **several), identity


def work(
    config: Finetune, stored: Any, given: Given | None = None, *, ranks: Ranks | None = None
) -> list[Typical]:
    """Typical operations, from the configuration of the denoiser, which is not loaded yet."""
    from diffusion.families import family_class
    from diffusion.loading import denoiser_config
    from genpol.commands.finetune.family import family_of
    from genpol.commands.finetune.memory import typical_size

    pipeline = None if given is None else given.pipeline
    if pipeline is None:
        found = denoiser_config(config.model_config or config.model)
    else:
        kind = family_of(config, given.family) or family_class(type(pipeline).__name__)
        found = getattr(pipeline, kind.denoiser_name).config
    return drawing(config, found, typical_size(config))


@on_this_machine(work)
def train(
    config: Finetune,
    stored: dict[str, Any],
    given: Given | None = None,
    *,
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """The whole run; writes the run folder and returns the summary. `ranks` are its processes, of
    which each calls this and the first one writes.

    Leaves `lora/` (or `unet/` with --train full), metrics.csv, summary.json, checkpoints/ and
    sample grids in samples/. Raises InputError for what a user can mend, and Interrupted where a
    signal stopped it.
    """
    from tqdm import tqdm

    from diffusion.errors import InputError
    from diffusion.finetune import Stopped
    from diffusion.fitting import memory_said
    from diffusion.ranks import Ranks
    from diffusion.selfcheck import self_check
    from diffusion.speed import tf32
    from diffusion.trained_weights import digest
    from genpol.finetuning.about import about_run
    from genpol.finetuning.session import Session
    from genpol.finetuning.stopping import Watch, watched
    from genpol.runs.elsewhere import Elsewhere
    from genpol.runs.interrupts import InterruptGuard
    from genpol.runs.run import Run

    ranks = ranks or Ranks()
    tuner, identity = build(config, given, ranks)
    for key, value in identity.items():
        if stored and stored.get(key) not in (None, value):
            what = key.split("_")[0]
            raise InputError(
                f'the {what} of the run in "{config.resume}" has changed since it started '
                f"(fingerprint {stored[key]}, now {value}); restore it, or start a new run"
            )
    document = {
        k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()
    } | identity
    alike = {k: v for k, v in document.items() if k not in OWN}
    weights = {"the digest of the trained weights": digest(tuner.trained.parameters)}
    ranks.require_alike(
        "model, prompts and settings", "start all on the same files and options", alike | weights
    )
    document["processes"] = ranks.count

    def folder() -> Run:
        if not ranks.main:
            return Elsewhere(config.output)
        how: dict[str, Any] = {"wandb": config.wandb, "resume": bool(stored)}
        return Run(config.output, document, command="finetune", **how)

    rounded = document["allow_tf32"] == "on" and tuner.policy.device.type == "cuda"
    with folder() as run_folder, InterruptGuard(quiet=not ranks.main) as guard, tf32(rounded):

        def stop() -> bool:
            return ranks.any(guard.stop)

        names = (*RESUMABLE, "processes")
        changed = {k: document[k] for k in names if stored and stored.get(k) != document[k]}
        if changed:  # a later bare --resume goes on with these
            run_folder.amend(changed)
        session = Session(
            tuner,
            run_folder,
            checkpoint_every=config.checkpoint_every,
            keep_checkpoints=config.keep_checkpoints,
            about=about_run(tuner, model=str(config.model), reward=str(config.reward)),
            kohya=config.export == "kohya",
            watch=None
            if config.stop_when is None
            else Watch(watched(config.stop_when, tuner.evaluated), config.stop_patience),
            model=config.model,
            best_of_k=config.best_of_k,
            guidance_control=config.guidance_control,
        )
        session.restore()
        if "export" in changed:
            session.save_for_users()
        with session.keeping(), memory_said():
            if tuner.epoch >= config.epochs:
                done = f"{config.output} has already run {tuner.epoch} epochs"
                print(f"{done}; raise --epochs to go on")
            elif session.stopped:
                print(f"{config.output} {session.stop_note()}; raise --stop-patience to go on")
            else:
                report = self_check(tuner)  # after a resume as well: the machine may be another
                for line in report.warnings:
                    print(f"warning: {line}")
                if tuner.epoch == 0:
                    session.begin(report.metrics)
            about = {"unit": "epoch", "smoothing": 0.1, "disable": not ranks.main}
            bar = tqdm(total=config.epochs, initial=tuner.epoch, **about)
            with bar:
                while tuner.epoch < config.epochs and not (session.stopped or stop()):
                    try:
                        metrics = tuner.run_epoch(stop)
                        bar.update()
                        shown = {}
                        if "reward/mean" in metrics:
                            shown["reward"] = f"{metrics['reward/mean']:.3f}"
                        if "dpo/loss" in metrics:
                            shown["loss"] = f"{metrics['dpo/loss']:.4f}"
                        if "kl/nats" in metrics:
                            shown["kl"] = f"{metrics['kl/nats']:.2f}"
                        bar.set_postfix(shown)
                        session.after_epoch(metrics)
                    except Stopped:
                        break
            summary: dict[str, float] | None = None
            where = f"after epoch {tuner.epoch}"
            if tuner.epoch >= config.epochs or session.stopped:
                try:
                    summary = session.finish(stop)
                except Stopped:
                    where = "after training, while images were drawn for comparison"
            else:
                session.save()
                session.write_page()
    if summary is None:
        guard.number = int(ranks.most(guard.number or 0)) or None
        raise guard.interrupted(
            f"stopped {where}; to continue: genpol finetune --resume {config.output}"
        )
    return summary
