"""How a command uses the machine it runs on: its threads, and a word about slow precisions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from genpol.runs.processor import on_the_cpu, slow_precisions
from offline.threads import Convolution, Product, Typical, choose, in_threads

Options = TypeVar("Options")
Rest = ParamSpec("Rest")
Result = TypeVar("Result")


def small(options: Any, *rest: Any, **named: Any) -> list[Typical]:
    """Of commands whose networks are small."""
    return []


def learning(options: Any, *rest: Any, **named: Any) -> list[Typical]:
    """Of commands that train on observations: the widest layer, and a layer of the image encoder
    in the middle of its channels and sizes."""
    rows = options.batch_size
    names = ("features", "width", "hidden", "model_hidden")
    sizes = [getattr(options, name, None) or 0 for name in names]
    width = max(max(size) if isinstance(size, tuple) else size for size in sizes)
    found: list[Typical] = [Product(rows, width, width)]
    if options.image_keys:
        found.append(Convolution(rows, 64, 16))
    return found


def drawing(options: Any, denoiser: Any, images: int) -> list[Typical]:
    """Of commands that draw images: the first layers of a UNet, or a transformer's width.

    Args:
        options: with `guidance_scale`, which doubles the images; None if the model decides.
        denoiser: its configuration, as diffusers writes it.
        images: drawn or learnt from at a time.
    """
    guided = options.guidance_scale is None or options.guidance_scale > 1
    size = denoiser.get("sample_size") or 64
    size = min(size) if isinstance(size, list | tuple) else size
    heads, each = denoiser.get("num_attention_heads"), denoiser.get("attention_head_dim")
    if "block_out_channels" not in denoiser and isinstance(heads, int) and isinstance(each, int):
        channels, size = heads * each, max(1, size // (denoiser.get("patch_size") or 1))
    else:
        channels = (denoiser.get("block_out_channels") or (320,))[0]
    return [Convolution((1 + guided) * images, channels, size)]


def on_this_machine(
    typical: Callable[..., Iterable[Typical]] = small,
) -> Callable[
    [Callable[Concatenate[Options, Rest], Result]], Callable[Concatenate[Options, Rest], Result]
]:
    """Decorates what runs a command: called with its options, which have `threads`.

    Meanwhile PyTorch computes in as many threads as they say, or as `offline.threads.choose`
    chooses; afterwards in as many as before. The command gets the options with that number, which
    it stores. A precision that is slower than float32 here is named in a line.

    PyTorch's own number stays where the networks compute on a GPU, and in a run that was begun
    before numbers were stored.

    Args:
        typical: the command's arguments -> typical operations of its networks.
    """

    def decorate(
        command: Callable[Concatenate[Options, Rest], Result],
    ) -> Callable[Concatenate[Options, Rest], Result]:
        @wraps(command)
        def run(options: Options, *rest: Rest.args, **named: Rest.kwargs) -> Result:
            decided = with_threads(options, typical(options, *rest, **named))
            for line in slow_precisions(decided, getattr(decided, "device", None)):
                print(f"warning: {line}", flush=True)
            with in_threads(decided.threads):  # type: ignore[attr-defined]
                return command(decided, *rest, **named)

        return run

    return decorate


def with_threads(options: Options, typical: Iterable[Typical] = ()) -> Options:
    """The same options with the number of threads decided, see `on_this_machine`."""
    asked: Any = options
    if asked.threads is None:
        begun = getattr(asked, "resume", None)
        if begun or not on_the_cpu(getattr(asked, "device", "cpu")):
            return options
    return replace(asked, threads=choose(asked.threads, typical))
