"""A `diffusers` text-to-image pipeline seen as a denoising policy: encode, predict, decode, LoRA.

How a pipeline class is called is its family's business (`families/`). The network's output includes
classifier-free guidance, so that rollout, training and reference agree on it.

Shapes: N prompts, B images, (C, h, w) one latent.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.chain import Condition, sent
from diffusion.decoding import images_at_once, in_pieces
from diffusion.errors import InputError
from diffusion.families import family_class
from diffusion.families.checks import check_pipeline, check_size, smaller
from diffusion.families.family import Family
from diffusion.flow import flow_process
from diffusion.held import HeldWeights
from diffusion.loading import DTYPES
from diffusion.lora.adapters import (
    REFERENCE,
    TRAINED,
    add_adapter,
    computing_with,
    fuse,
    insert,
    target_names,
    thinned,
    wrapped_layers,
)
from diffusion.lora.load import fuse_encoders, read_for
from diffusion.lora.names import Layer
from diffusion.lora.save import adapter_layers, save_diffusers, save_kohya
from diffusion.offload import Offload
from diffusion.process import ReverseProcess, reverse_process
from diffusion.prompt_encoding import NEGATIVE, encode_prompts
from diffusion.sharding import Sharding, save_whole
from diffusion.speed import Speed


class ImagePolicy:
    """The pipeline with trainable weights and a frozen reference.

    `train`: "lora" adds an adapter (initially the identity); "full" trains the denoiser, in fp32
    whatever it was loaded in, and keeps its weights as they were as reference, on `reference_on`:
    "host", from where they change places with the trained ones, or "device", as a second network;
    by default on the host of a GPU. "nothing" is for drawing alone.
    `train_resolution` is the shorter side of training images, where it is another than that of
    `height` and `width`, which `full_size` draws. `start_lora` starts from a LoRA the user already
    has; the reference is then that LoRA, in a second frozen adapter, not the bare model. What it
    changes in text encoders is added to their weights, stays as it is, and is saved beside what is
    trained. `family` replaces the one that the pipeline's class has. `offload` names the parts of
    the pipeline that wait in the machine's memory (`diffusion/offload.py`).
    `sharding` splits the denoiser over the processes of a run; saving is then collective. `speed`
    says what is quantised, compiled and laid out anew.
    """

    def __init__(
        self,
        pipe,
        *,
        guidance_scale: float,
        negative_prompt: str = "",
        train: str = "lora",
        lora_rank: int = 8,
        lora_targets: str = "attention",
        lora_alpha: float | None = None,
        lora_dora: bool = False,
        start_lora: str | None = None,
        reference_on: str | None = None,
        sharding: Sharding | None = None,
        speed: Speed | None = None,
        gradient_checkpointing: bool = False,
        autocast: str | None = None,
        device: str = "cpu",
        seed: int = 0,
        family: type[Family] | None = None,
        height: int | None = None,
        width: int | None = None,
        train_resolution: int | None = None,
        max_sequence_length: int | None = None,
        offload: Iterable[str] = (),
    ) -> None:
        self.pipe, self.train, self.sharding = pipe, train, sharding
        self.speed = speed or Speed()
        kind = family or family_class(type(pipe).__name__)
        check_pipeline(kind, pipe)
        self.speed.quantise(getattr(pipe, kind.denoiser_name), device, sharding is not None)
        self._full_size = self.family = kind(
            pipe, height=height, width=width, max_sequence_length=max_sequence_length
        )
        check_size(self.family)
        if train_resolution is not None:
            self.family = smaller(self.family, train_resolution)
        self.denoiser = self.family.denoiser
        self.offload = Offload(offload, device)
        self._place(device)
        self.guidance_scale, self.negative_prompt = guidance_scale, negative_prompt
        self.device, self.autocast_dtype = (
            torch.device(device),
            DTYPES[autocast] if autocast else None,
        )
        self._starting_lora = start_lora is not None
        self._kept: dict[str, dict[str, Layer]] = {}  # a LoRA's part in the text encoders
        self._frozen: torch.nn.Module | None = None
        self._reference: torch.nn.Module | None = None  # while its weights are in place
        self._held: HeldWeights | None = None
        if train != "nothing" and self.denoiser.config.get("time_cond_proj_dim"):
            raise InputError(
                "guidance-distilled UNets (LCM) are not supported: they take no guidance"
            )
        if train == "lora":
            if start_lora is not None:
                self._start_from(start_lora)
            else:
                targets = target_names(self.denoiser, lora_targets, self.family.lora_targets)
                add_adapter(
                    self.denoiser,
                    targets,
                    rank=lora_rank,
                    alpha=lora_alpha,
                    dora=lora_dora,
                    seed=seed,
                )
            self._require_lora_grad()
            self._split()
        elif train == "full":
            self._add_full(start_lora, reference_on)
        elif train != "nothing":
            raise InputError(f"train must be lora, full or nothing, got {train!r}")
        if gradient_checkpointing or (sharding is not None and sharding.checkpointing):
            self._recompute()
        self.denoiser.eval()  # dropout off, in rollout and training alike
        self._wrapped = wrapped_layers(self.denoiser)
        self.speed.prepare(self.networks(), getattr(pipe, "vae", None), self.autocast_dtype)

    def _place(self, device: str) -> None:
        """Move what does not wait in the machine's memory, so that the rest never has to fit. A
        network that is split passes through the device block by block."""
        if not self.offload.parts and self.sharding is None:
            self.pipe.to(device)
            return
        if self.sharding is None:
            self.denoiser.to(device)
        for part, modules in (("encoders", self._encoders()), ("vae", self._vae())):
            for module in modules:
                module.to("cpu" if part in self.offload.parts else device)

    def _encoders(self) -> list[torch.nn.Module]:
        """All networks of the pipeline but the denoiser and the autoencoder."""
        others = [self.denoiser, *self._vae()]
        modules = [m for m in self.pipe.components.values() if isinstance(m, torch.nn.Module)]
        return [module for module in modules if all(module is not other for other in others)]

    def _vae(self) -> list[torch.nn.Module]:
        """The autoencoder; none in a pipeline on pixels."""
        vae = getattr(self.pipe, "vae", None)
        return [] if vae is None else [vae]

    def _recompute(self) -> None:
        """Keep no activations inside of blocks; a backward pass computes them again."""
        try:
            self.denoiser.enable_gradient_checkpointing()
        except (AttributeError, ValueError) as error:  # not of diffusers, or without support
            raise InputError(
                f"--gradient-checkpointing: a {type(self.denoiser).__name__} cannot recompute its "
                "activations; leave it out, or give your class the mixin of diffusers' models "
                "and _supports_gradient_checkpointing"
            ) from error

    def _start_from(self, folder: str) -> None:
        name = self.family.denoiser_name
        lora = read_for(self.pipe, folder, name)
        if not lora.layers.get(name):
            raise InputError(
                f'the LoRA "{folder}" changes only text encoders, and the {name} is trained: fuse '
                "it into the pipeline first"
            )
        fuse_encoders(self.pipe, lora)
        self._kept = {key: layers for key, layers in lora.layers.items() if key != name}
        for adapter in (REFERENCE, TRAINED):
            insert(self.denoiser, lora.layers[name], adapter, dtype=torch.float32)

    def _require_lora_grad(self) -> None:
        for name, parameter in self.denoiser.named_parameters():
            trained = "lora_" in name and f".{TRAINED}." in name
            parameter.requires_grad_(trained)
            if trained and parameter.dtype != torch.float32:
                parameter.data = parameter.data.float()  # masters stay fp32 under a half network

    def _add_full(self, start: str | None, reference_on: str | None) -> None:
        if start is not None:
            name = self.family.denoiser_name
            lora = read_for(self.pipe, start, name)
            encoders = [component for component in lora.layers if component != name]
            if encoders:
                raise InputError(
                    f'the LoRA "{start}" also changes {" and ".join(encoders)}, and --train full '
                    f"saves the {name} alone: fuse it into the pipeline first, or train a LoRA"
                )
            fuse(self.denoiser, lora.layers[name])
        loaded = {name: p.dtype for name, p in self.denoiser.named_parameters()}
        self._split()
        self.denoiser.float().requires_grad_(True)
        on = reference_on or ("host" if self.device.type == "cuda" else "device")
        if on == "device" and self.sharding is None:
            self._frozen = copy.deepcopy(self.denoiser).eval().requires_grad_(False)
        else:
            self._held = HeldWeights(dict(self.denoiser.named_parameters()), loaded, on)

    def _split(self) -> None:
        if self.sharding is not None:
            self.sharding.split(self.denoiser, self.device, self.autocast_dtype)

    # -- weights --------------------------------------------------------------------------------

    def networks(self) -> list[torch.nn.Module]:
        """Those that predict: the denoiser, and the reference where it is a network of its own."""
        return [self.denoiser] if self._frozen is None else [self.denoiser, self._frozen]

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The trained parameters by name."""
        return {n: p for n, p in self.denoiser.named_parameters() if p.requires_grad}

    def thinned(self, rate: float, seed: int, epoch: int) -> AbstractContextManager[None]:
        """Within this context the trained LoRA's dropout acts, the same for every pass."""
        return thinned(self.denoiser, TRAINED, rate, seed, epoch)

    def lora_layers(self) -> dict[str, dict[str, Layer]]:
        """The trained LoRA by component and layer, with what it started from in text encoders."""
        return {self.family.denoiser_name: adapter_layers(self.denoiser, TRAINED)} | self._kept

    def save_weights(
        self,
        folder: Path,
        about: Mapping[str, str] | None = None,
        *,
        kohya: bool = False,
        write: bool = True,
    ) -> Path:
        """Write the LoRA (diffusers layout) or the whole denoiser into `folder`; returns it.

        Where the denoiser is split, all processes call this and one of them writes.

        Args:
            folder: where to.
            about: metadata of a LoRA's file.
            kohya: write the LoRA in the layout of user interfaces too, beside it.
            write: whether this process writes, which else only sends what it has.
        """
        if write:
            folder.mkdir(parents=True, exist_ok=True)
        if self.train == "lora":
            layers = self.lora_layers()
            if not write:
                return folder
            save_diffusers(folder, layers, about or {})
            if kohya:
                is_unet = self.family.denoiser_name == "unet"
                save_kohya(folder, layers, about or {}, self.denoiser.config if is_unet else None)
        elif self.sharding is not None:
            save_whole(self.denoiser, folder, write)
        elif write:
            self.denoiser.save_pretrained(folder, safe_serialization=True)
        return folder

    @contextmanager
    def as_reference(self) -> Iterator[torch.nn.Module]:
        """Within this context the reference's weights are in place, so that one switch serves many
        calls of `predict_reference`. `predict` has to wait until it ends."""
        if self._reference is not None:
            yield self._reference
            return
        with self._reference_weights() as network:
            self._reference = network
            try:
                yield network
            finally:
                self._reference = None

    @contextmanager
    def _reference_weights(self) -> Iterator[torch.nn.Module]:
        if self._frozen is not None:
            yield self._frozen
        elif self._held is not None:
            with self._held.swapped():
                yield self.denoiser
        else:
            with computing_with(self._wrapped, REFERENCE if self._starting_lora else None):
                yield self.denoiser

    # -- conditioning, prediction, decoding -------------------------------------------------------

    @contextmanager
    def full_size(self) -> Iterator[None]:
        """Within this context images have the size of evaluations, whatever training draws."""
        small, self.family = self.family, self._full_size
        try:
            yield
        finally:
            self.family = small

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        return self.family.latent_shape

    def process(
        self,
        num_inference_steps: int,
        *,
        eta: float = 1.0,
        sampler: str = "flow-sde",
        noise_level: float = 0.7,
        window: tuple[int, int] | None = None,
    ) -> ReverseProcess:
        """The reverse process of the pipeline's scheduler: `eta` is for DDIM, what follows it for
        flow models; see `reverse_process` and `flow_process`."""
        scheduler = self.pipe.scheduler
        if not self.family.flow:
            return reverse_process(scheduler, num_inference_steps, eta)
        schedule = self.family.schedule(num_inference_steps)
        return flow_process(
            scheduler, num_inference_steps, sampler, noise_level, window=window, schedule=schedule
        )

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """Conditioning of N prompts by the pipeline's own encoders, each value (N, ...).

        With guidance, the negative prompt's is there under the same names and "_negative".
        """
        guided = self.family.guided(self.guidance_scale)
        negative = self.negative_prompt if guided else None
        with self.offload.called("encoders", self._encoders() if self.offload.parts else ()):
            return encode_prompts(self.family, prompts, self.device, negative)

    def predict(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Guided network output (B, C, h, w) float32 under the current weights."""
        assert self._reference is not self.denoiser, "the reference's weights are in place"
        return self._run(self.denoiser, x_t, t, cond)

    def predict_reference(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The same under the reference weights; no gradient."""
        with torch.no_grad(), self.as_reference() as network:
            return self._run(network, x_t, t, cond)

    def _run(self, network: torch.nn.Module, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        family, scale = self.family, self.guidance_scale
        plain = {name: value for name, value in cond.items() if not name.endswith(NEGATIVE)}
        if not family.guided(scale):
            return self._call(network, x_t, t, plain)
        negative = {name: cond[f"{name}{NEGATIVE}"] for name in plain}
        if all(value.shape == negative[name].shape for name, value in plain.items()):
            both = {name: torch.cat([negative[name], value]) for name, value in plain.items()}
            out = self._call(network, torch.cat([x_t, x_t]), torch.cat([t, t]), both)
            unconditional, conditional = out.chunk(2)
        else:  # prompts of another length
            unconditional = self._call(network, x_t, t, negative)
            conditional = self._call(network, x_t, t, plain)
        return family.guide(conditional, unconditional, scale)

    def _call(self, network: torch.nn.Module, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        autocast = (
            torch.autocast(self.device.type, self.autocast_dtype)
            if self.autocast_dtype
            else nullcontext()
        )
        # Encoders stay in the precision they were loaded in, and trained weights are fp32.
        dtype = network.dtype
        fitting = {n: v.to(dtype) if v.is_floating_point() else v for n, v in cond.items()}

        def call() -> Tensor:
            return self.family.call(network, x_t, t, fitting, self.guidance_scale)

        with autocast:
            return self.speed.run(network, call, (x_t, t, *fitting.values())).float()

    @torch.no_grad()
    def decode(self, latents: Tensor, batch: int = 64) -> Tensor:
        """Images (B, 3, H, W) float32 in [0, 1] on the CPU, decoded in passes of bounded pixels, of
        at most `batch` images."""
        images, first = torch.empty(0), 0
        with self._stable_vae() as vae:
            for chunk in latents.split(images_at_once(self.family.image_size, batch)):
                image = self.family.decode(sent(chunk, self.device).to(vae.dtype)).float()
                if not first:
                    images = torch.empty(len(latents), *image.shape[1:])
                images[first : first + len(chunk)] = (image / 2 + 0.5).clamp(0, 1)
                first += len(chunk)
        return images

    @torch.no_grad()
    def encode_images(self, images: Tensor, batch: int = 16) -> Tensor:
        """Latents (B, C, h, w) float32 of images (B, 3, H, W) in [0, 1], of the family's
        `image_size`: what `decode` turns back into them. Passes are as in `decode`."""
        if tuple(images.shape[2:]) != self.family.image_size:
            raise ValueError(f"images of {tuple(images.shape[2:])}, not {self.family.image_size}")
        latents = []
        with self._stable_vae() as vae:
            for chunk in images.split(images_at_once(self.family.image_size, batch)):
                pixels = (2 * sent(chunk, self.device) - 1).to(vae.dtype)
                latents.append(self.family.encode_image(pixels).float())
        return torch.cat(latents)

    @contextmanager
    def _stable_vae(self) -> Iterator[torch.nn.Module]:
        """The autoencoder on the device, in pieces where images are large, and in fp32 where it
        would overflow in fp16 (SDXL's); the denoiser in a pipeline on pixels."""
        vae: Any = next(iter(self._vae()), self.denoiser)
        upcast = vae.dtype == torch.float16 and bool(vae.config.get("force_upcast"))
        pieces = in_pieces(vae, self.family.image_size)
        with self.offload.called("vae", self._vae()), pieces:
            if upcast:
                vae.to(torch.float32)
            try:
                yield vae
            finally:
                if upcast:
                    vae.to(torch.float16)

    @contextmanager
    def at_guidance(self, scale: float) -> Iterator[None]:
        """Within this context `encode` and `predict` use another guidance scale; 1 is none."""
        kept, self.guidance_scale = self.guidance_scale, scale
        try:
            yield
        finally:
            self.guidance_scale = kept
