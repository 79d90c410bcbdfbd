"""Network evaluations, counted where they happen: an image that a network sees is one.

With guidance a network sees every image twice, whether in one pass or in two, so that an image of
T steps costs 2 T. Nothing is assumed of who calls the network.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Evaluations:
    """Within this context `count` grows by the rows of every call of a network.

        with Evaluations(policy.denoiser) as seen:
            ...
        seen.count

    Args:
        network: whose calls count. Its first tensor, or list of tensors, has a row for each image.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network, self.count = network, 0
        self._hook: RemovableHandle | None = None

    def __enter__(self) -> Evaluations:
        self._hook = self.network.register_forward_pre_hook(self._see, with_kwargs=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._hook is not None
        self._hook.remove()

    def _see(self, network: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        for value in (*args, *named.values()):
            if isinstance(value, list) or (isinstance(value, Tensor) and value.ndim):
                self.count += len(value)
                return
