"""What single passes of a policy take beyond its weights, measured on the meta device.

Each function runs the policy's own code once, for so many rows, and returns bytes. Numbers hold for
any architecture, guidance and precision, since nothing is tabulated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental import _config
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from diffusion.chain import Condition
from diffusion.pipelines import ImagePolicy
from diffusion.planning.live_bytes import DEVICE, FusedAttention, LikeAutocast, LiveBytes


class Passes:
    """The passes of a policy on the meta device.

    Args:
        policy: made of a pipeline without weights, with no autocast of its own.
        autocast: the precision of autocast, or None.
        on_cpu: whether the device that is planned for is the CPU.
    """

    def __init__(
        self, policy: ImagePolicy, autocast: torch.dtype | None = None, *, on_cpu: bool = False
    ) -> None:
        self.policy, self.autocast, self.on_cpu = policy, autocast, on_cpu

    @contextmanager
    def counted(self) -> Iterator[LiveBytes]:
        # Choices by a mask are counted as if the mask were true everywhere.
        with LiveBytes() as live, _config.patch(meta_nonzero_assume_all_nonzero=True):
            with self.as_on_a_device():
                yield live

    @contextmanager
    def as_on_a_device(self) -> Iterator[None]:
        cast: Any = nullcontext()
        if self.autocast is not None:
            cast = LikeAutocast(self.autocast, norms=not self.on_cpu)
        with cast, FusedAttention():
            yield

    def checkpoint(self, on: bool) -> None:
        """Turn gradient checkpointing on or off."""
        network: Any = self.policy.denoiser
        if not on:
            return network.disable_gradient_checkpointing()

        def again(module: torch.nn.Module, *args: Any) -> Any:
            # What is computed in the backward pass is computed as in the forward pass.
            contexts = (nullcontext(), self.as_on_a_device())
            return checkpoint(
                module.__call__, *args, use_reentrant=False, context_fn=lambda: contexts
            )

        network.enable_gradient_checkpointing(again)

    def inputs(self, rows: int, cond: Condition) -> tuple[Tensor, Tensor, Condition]:
        """Latents (rows, C, h, w), times and conditioning of so many rows."""
        x = torch.empty(rows, *self.policy.latent_shape, device="meta")
        return x, torch.empty(rows, device="meta"), _rows(cond, rows)

    def encode(self, prompts: list[str]) -> tuple[Condition, int]:
        """Conditioning of N prompts on the meta device, and the peak while they are encoded.

        Prompts are cut into tokens on the CPU, as ever; a text encoder is entered on the meta
        device, and what leaves it is zeros of the right shape. Masks and lengths are real numbers.
        """
        policy, device = self.policy, self.policy.device
        names = [n for n in policy.pipe.components if n.startswith("text_encoder")]
        encoders = [e for n in names if (e := getattr(policy.pipe, n)) is not None]
        with ExitStack() as stack:
            for encoder in encoders:
                hook = encoder.register_forward_pre_hook(_to_meta, with_kwargs=True)
                stack.callback(hook.remove)
                stack.callback(encoder.register_forward_hook(_to_zeros).remove)
            live = stack.enter_context(self.counted())
            policy.device = torch.device("cpu")
            try:
                cond = policy.encode(prompts)
            finally:
                policy.device = device
        return {name: value.to("meta") for name, value in cond.items()}, live.peak[DEVICE]

    def predict(self, rows: int, cond: Condition) -> int:
        """Peak of one guided pass without a graph."""
        x, t, cond = self.inputs(rows, cond)
        with self.counted() as live, torch.no_grad():
            self.policy.predict(x, t, cond)
        return live.peak[DEVICE]

    def train(self, rows: int, cond: Condition, *, references: int = 0) -> int:
        """Peak of one forward and backward pass, without the gradients themselves.

        Args:
            references: passes without a graph that the objective makes beside it.
        """
        x, t, cond = self.inputs(rows, cond)
        trained = list(self.policy.trainable().values())
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        with self.counted() as live:
            apart = self.policy.predict(x, t, cond)
            for _ in range(references):
                apart = apart - self.policy.predict_reference(x, t, cond)
            apart.square().flatten(1).mean(1).sum().backward()
        for parameter in trained:
            parameter.grad = None
        return live.peak[DEVICE]

    def decode(self, count: int) -> tuple[int, int]:
        """Peaks while so many latents become images: on the device, and on the host."""
        latents = torch.empty(count, *self.policy.latent_shape, device="meta")
        with self.counted() as live:
            self.policy.decode(latents)
        return live.peak[DEVICE], live.peak["host"]

    def encode_images(self, count: int) -> int:
        """Peak on the device while so many images become latents."""
        images = torch.empty(count, 3, *self.policy.family.image_size, device="meta")
        with self.counted() as live:
            self.policy.encode_images(images)
        return live.peak[DEVICE]


def _rows(cond: Condition, rows: int) -> Condition:
    shapes = {name: (rows, *value.shape[1:]) for name, value in cond.items()}
    return {n: torch.empty(s, dtype=cond[n].dtype, device="meta") for n, s in shapes.items()}


def _to_meta(module: Any, args: Any, kwargs: Any) -> Any:
    def moved(value: Any) -> Any:
        return value.to("meta") if isinstance(value, Tensor) else value

    return tree_map(moved, args), tree_map(moved, kwargs)


def _to_zeros(module: Any, inputs: Any, outputs: Any) -> Any:
    """Of no memory; each holds the tensor that it stands for, which is alive as long as it is."""

    def zeros(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_meta:
            return value
        stand_in = torch.zeros((), dtype=value.dtype).expand(value.shape)
        stand_in.stands_for = value  # type: ignore[attr-defined]
        return stand_in

    if isinstance(outputs, dict):  # a ModelOutput, which also has attributes
        for key in list(outputs):
            outputs[key] = tree_map(zeros, outputs[key])
        return outputs
    return tree_map(zeros, outputs)
