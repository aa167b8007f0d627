"""A DEQ whose parts are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deqcert.models.base import DEQ, map_tensors
from deqcert.solvers import Mixer


class CompiledDEQ(DEQ):
    """The same function by ``torch.compile``; every batch size is compiled for itself, so give it few.

    On a GPU the kernels of each part are launched as one CUDA graph; on a CPU the weights are frozen into the code.

    Args:
        network: A network in evaluation mode whose parameters do not change any more.
    """

    def __init__(self, network: DEQ) -> None:
        super().__init__(network.solver)
        self.network = network
        self._inject = _compiled(network.inject, network)
        self._cell = _compiled(network.cell, network)
        self._head = _compiled(network.head, network)
        self.eval()

    def inject(self, x: Tensor) -> Any:
        """As in the network."""
        return self._inject(x)

    def initial_state(self, injection: Any) -> Tensor:
        """As in the network."""
        return self.network.initial_state(injection)

    def anchor(self, injection: Any) -> Tensor:
        """As in the network."""
        return self.network.anchor(injection)

    @property
    def mixer(self) -> Mixer | None:
        """As in the network."""
        return self.network.mixer

    def cell(self, z: Tensor, injection: Any) -> Tensor:
        """As in the network."""
        image: Tensor = self._cell(z, injection)
        return image

    def head(self, z: Tensor) -> Tensor:
        """As in the network."""
        logits: Tensor = self._head(z)
        return logits


def _compiled(function: Callable[..., Any], network: DEQ) -> Callable[..., Any]:
    device = next(network.parameters()).device.type
    if device != "cuda":
        return torch.compile(function, dynamic=False, options={"freezing": True})
    graph = torch.compile(function, dynamic=False, mode="reduce-overhead")

    def owned(*arguments: Any) -> Any:
        # The next replay of a CUDA graph overwrites its outputs.
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return map_tensors(torch.clone, graph(*arguments))

    return owned
