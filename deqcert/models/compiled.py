"""A DEQ whose parts are compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from deqcert.models.base import DEQ, map_tensors


def compile_deq(network: DEQ) -> DEQ:
    """Return a twin of a network whose evaluation is compiled by ``torch.compile``; all else is the network's own.

    The network is in evaluation mode, and its parameters do not change any more. Every batch size is compiled for
    itself, so give it few. On a GPU the kernels of each part run as one CUDA graph; on a CPU the weights are frozen in.
    """
    twin = copy.copy(network)
    device = next(network.parameters()).device.type
    for name in ("inject", "cell", "head"):
        setattr(twin, name, _compiled(getattr(network, name), device))
    return twin


def _compiled(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    if device != "cuda":
        return torch.compile(function, dynamic=False, options={"freezing": True})
    graph = torch.compile(function, dynamic=False, mode="reduce-overhead")

    def owned(*arguments: Any) -> Any:
        # The next replay of a CUDA graph overwrites its outputs.
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return map_tensors(torch.clone, graph(*arguments))

    return owned
