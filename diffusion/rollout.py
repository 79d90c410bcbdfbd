"""Many chains, drawn batch by batch into memory that is taken once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from diffusion.chain import Condition, DenoisingChain, Predictor, sample_chain
from diffusion.fitting import Fitting
from diffusion.process import ReverseProcess
from diffusion.scores import take

Streams = Callable[[slice], list[torch.Generator]]  # some of the chains -> a generator for each


def draw_chains(
    predict: Predictor,
    process: ReverseProcess,
    cond: Condition,
    owner: Tensor,
    shape: Sequence[int],
    streams: Streams,
    batch: Fitting,
    *,
    reference: Predictor | None = None,
    reference_weights: Callable[[], AbstractContextManager[Any]] = nullcontext,
    storage_dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    in_host: bool = False,
    path: bool = True,
    after: Callable[[], None] | None = None,
) -> DenoisingChain:
    """M chains. What a row is does not depend on the size of batches.

    Args:
        predict: the policy's network.
        process: of the scheduler.
        cond: the conditioning of each prompt; a batch takes the rows that it needs.
        owner: (M,) the row of `cond` that each chain belongs to.
        shape: of one x.
        streams: the generators of some chains, made anew at each call.
        batch: chains drawn at a time.
        reference: scored once for each batch, within `reference_weights()`.
        storage_dtype: of the stored x.
        device: where the networks compute.
        in_host: keep the stored x in host memory beside a GPU.
        path: whether every x is kept, or the sample alone.
        after: called after each batch.
    """
    chain = DenoisingChain.empty(
        len(owner),
        shape,
        process.num_steps,
        dtype=storage_dtype,
        device=device,
        in_host=in_host,
        path=path,
        reference=reference is not None,
    )

    def part(first: int, last: int) -> None:
        sample_chain(
            predict,
            process,
            take(cond, owner[first:last]),
            shape,
            streams(slice(first, last)),
            reference=reference,
            reference_weights=reference_weights(),
            device=device,
            into=chain.span(first, last),
        )

    batch.over(len(owner), part, after=after)
    return chain
