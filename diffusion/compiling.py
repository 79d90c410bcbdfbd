"""torch.compile of a denoiser in place: drawing, scoring and training use the compiled one.

A UNet is compiled whole, a transformer block by block (its blocks are alike, so one compilation
serves them all). Names of weights stay as they are. Three graphs are needed, since passes differ in
whether adapters are on and whether there is a gradient: policy and reference without, and policy
with one. The batch's size is a variable of the graphs, so micro-batches, rollout batches and their
rests share them; a batch of one, and images of another size, cost one more each.

Where a pass computes in half precision, fused kernels round where separate ones do
(`emulate_precision_casts`). Else the graphs with and without a gradient would round at different
places, and so would the log-probs of drawing and training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

GRAPHS = 64  # of one function, before PyTorch would go on without compiling, and only log it


class Compiled:
    """A network that is compiled in place, and goes back to what it was where that fails.

    Args:
        network: a denoiser of diffusers, with its adapters.
        half: whether it computes in half precision.
        backend: of torch.compile.
        say: is told one line where compiling fails.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        *,
        half: bool = False,
        backend: str | Callable[..., object] = "inductor",
        say: Callable[[str], None] = print,
    ) -> None:
        import torch._dynamo

        self.network, self.say = network, say
        self.parts = _parts(network)
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
        exact = {"options": {"emulate_precision_casts": True}} if half else {}
        for part in self.parts:
            part.compile(backend=backend, **(exact if backend == "inductor" else {}))

    def run(self, call: Callable[[], Tensor], inputs: Iterable[Tensor]) -> Tensor:
        """`call()`, which calls the network with `inputs`, each (B, ...)."""
        import torch._dynamo
        from torch._dynamo.exc import TorchDynamoException

        if not self.parts:
            return call()
        for one in inputs:
            torch._dynamo.maybe_mark_dynamic(one, 0)
        try:
            return call()
        except TorchDynamoException as error:
            self.undo()
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            self.say(
                f"warning: --compile: the {type(self.network).__name__} cannot be compiled here "
                f"({reason}); the run goes on without"
            )
            return call()

    def undo(self) -> None:
        """Compute without compiling from now on."""
        for part in self.parts:
            part._compiled_call_impl = None
        self.parts = []


def _parts(network: torch.nn.Module) -> list[torch.nn.Module]:
    """What is compiled of a denoiser: its repeated blocks, or all of it where it names none.

    FSDP gathers the weights of each block as it is called, outside of what is compiled.
    """
    whole = "UNet" in type(network).__name__ and not hasattr(network, "reshard")
    lists = (getattr(network, name, None) for name in ("_repeated_blocks", "_no_split_modules"))
    named = next(filter(None, lists), ())
    blocks = [one for one in network.modules() if type(one).__name__ in named]
    return [network] if whole or not blocks else blocks
