"""`train` and `finetune` for Python: a command's options, and objects in place of names.

    train(Train(agent="expo", output=Path("runs/mine")), env=MyEnv)
    finetune(Finetune(prompts="prompts.txt", model="sd-folder"), reward=my_reward)

They leave the run folders that the commands leave, and stop politely on Ctrl-C as they do. An
object's name goes into config.json where the option's would, as "module:name".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from genpol.commands.finetune.options import Finetune
from genpol.commands.train.options import Train

if TYPE_CHECKING:
    from diffusion.families.family import Family
    from diffusion.objective import Objective
    from diffusion.prompts.sources import PromptSource
    from diffusion.rewards import RewardFn
    from offline.critics.value import ValueFunction
    from offline.data.episodes import Episode, Episodes
    from offline.learning.agent import Agent
    from offline.types import Policy


def train(
    options: Train,
    *,
    env: Callable[[], Any] | None = None,
    data: Episodes | Sequence[Episode] | None = None,
    base: Policy | None = None,
    value: ValueFunction | None = None,
    make_agent: Callable[..., Agent] | None = None,
) -> dict[str, float]:
    """Improve a policy by reinforcement learning, as `genpol train` does.

    Args:
        options: see `Train`. With `resume` the run in that folder goes on.
        env: makes one environment, such as a `gymnasium.Env` class; see `robots.make_env`.
        data: demonstrations.
        base: the policy to start from; any but a `ChunkPolicy` stays frozen. It is copied.
        value: the critic to start from. It is copied.
        make_agent: makes an agent of one's own; called as `genpol.make_agent` is.

    Returns:
        What is in summary.json; empty if the run was stopped before its end. The trained policy
        is `genpol.load_trained(options.output)`.

    Raises:
        InputError: for what the caller can mend; nothing has been written then.
    """
    from genpol.commands.train.command import train as run
    from genpol.commands.train.inputs import Given
    from genpol.commands.train.options import CHANGEABLE, check, require_preset
    from genpol.runs.resuming import restored
    from genpol.training.session import Clock

    clock = Clock()
    names: dict[str, Any] = {}
    if env is not None:
        names["env"] = _name(env)
    if make_agent is not None:
        names["agent"] = _name(make_agent)
    options = replace(options, **names)
    require_preset(options)
    stored: dict[str, Any] = {}
    if options.resume:
        options, stored = restored(options, "train", CHANGEABLE)
    given = Given(env, data, base, value, make_agent)
    if options.env is None and (known := getattr(data, "env", None)):
        options = replace(options, env=known)
    check(options)
    return _told(lambda: run(options, stored, clock, given))


def finetune(
    options: Finetune,
    *,
    pipeline: Any = None,
    reward: RewardFn | None = None,
    gold: Mapping[str, RewardFn] | None = None,
    prompts: PromptSource | Sequence[str] | None = None,
    objective: Objective | None = None,
    family: type[Family] | None = None,
) -> dict[str, float]:
    """Fine-tune an image diffusion pipeline on a reward, as `genpol finetune` does.

    Args:
        options: see `Finetune`. With `resume` the run in that folder goes on.
        pipeline: a pipeline of a supported class, or of `family`; it is trained in place, its LoRA
            is also saved. Settings that are not given are those recommended for its family, as
            with `Finetune(model=...)`.
        reward: (images (B, 3, H, W) float in [0, 1], B prompts) -> B numbers, higher is better; or
            any other form that `diffusion.rewards.callables` lists.
        gold: rewards that are only evaluated, by name.
        prompts: the prompts themselves, or a source of them; a tenth is held out of the former.
        objective: a loss of one's own in place of PRDP; see `diffusion.Objective`.
        family: how a pipeline of one's own class is called; see `diffusion.Family`.

    Returns:
        What is in summary.json; empty if the run was stopped before its end. In a script that
        accelerate launch or torchrun starts in several processes, every process calls this and gets
        the same; the first one writes.

    Raises:
        InputError: for what the caller can mend; nothing has been written then.
    """
    from diffusion.config import check
    from genpol.commands.finetune.command import Given, complete
    from genpol.commands.finetune.command import train as run
    from genpol.commands.finetune.options import RESUMABLE
    from genpol.runs.resuming import restored
    from genpol.runs.several import several

    names: dict[str, Any] = {}
    if pipeline is not None:
        names["model"] = options.model or pipeline.config.get("_name_or_path") or "a pipeline"
    if reward is not None:
        names["reward"] = _name(reward)
    if prompts is not None:
        names["prompts"] = getattr(prompts, "name", None) or f"a list of {len(prompts)}"  # type: ignore[arg-type]
    if objective is not None:
        names["algorithm"] = _name(objective)
    if family is not None:
        names["family"] = _name(family)
    options = replace(options, **names)
    given = Given(pipeline, reward, gold, prompts, objective, family)
    with several(options.device) as ranks:
        stored: dict[str, Any] = {}
        if options.resume:
            asked = options
            options, stored = ranks.by_main(lambda: restored(asked, "finetune", RESUMABLE))
        options = complete(options, given)
        check(options)
        return _told(lambda: run(options, stored, given, ranks=ranks))


def _told(run: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What a run returns; nothing, once it is said how to go on, where a signal stopped it."""
    from genpol.runs.interrupts import Interrupted

    try:
        return run()
    except Interrupted as stopped:
        print(stopped)
        return {}


def _name(thing: Any) -> str:
    """ "module:name" of a class or function, or of an object's class."""
    kind = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{kind.__module__}:{kind.__qualname__}"
