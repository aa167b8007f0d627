"""A DEQ made of parts from elsewhere: an encoder, a function f(z, x) of one or several states, and a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deqcert.errors import require
from deqcert.models.base import DEQ, map_tensors
from deqcert.solvers import Anderson, Solver


class FunctionDEQ(DEQ):
    """A DEQ whose cell is a function f(z, x) that was written for another library, such as torchdeq.

    Solvers see one tensor per image; ``function`` and ``decoder`` see the states that it packs: a tensor if ``shapes``
    has one entry, else a tuple of tensors. Every solve starts from zeros. The rules of :class:`DEQ` hold for the parts.

    Args:
        encoder: From images in [0, 1], shape (B, C, H, W), to x: a tensor, or a tuple of tensors.
        function: f(z, x), which returns the next z.
        decoder: From z to logits, shape (B, classes).
        shapes: Shape of each state for one image, e.g. ``[[8, 8, 8], [16, 4, 4]]``.
        solver: Solver of :meth:`forward`; training and certification bring their own.

    Raises:
        SettingError: ``shapes`` or one of them is empty, a size is < 1, or f returns states of other shapes.

    Example:
        >>> class Mean(nn.Module):
        ...     def forward(self, z, x):
        ...         fine, coarse = z
        ...         return (fine + x) / 2, (coarse + fine.mean(dim=1, keepdim=True)) / 2
        >>> class Sign(nn.Module):
        ...     def forward(self, z):
        ...         return torch.cat([z[1], -z[1]], dim=1)
        >>> network = FunctionDEQ(nn.Flatten(), Mean(), Sign(), shapes=[[4], [1]]).eval()
        >>> network(torch.ones(1, 1, 2, 2)).round(decimals=2)  # both states solve to ones
        tensor([[ 1., -1.]])
    """

    def __init__(
        self,
        encoder: nn.Module,
        function: nn.Module,
        decoder: nn.Module,
        shapes: Sequence[Sequence[int]],
        solver: Solver = Anderson(max_steps=30, tolerance=1e-3),
    ) -> None:
        super().__init__(solver)
        self.shapes = tuple(tuple(shape) for shape in shapes)
        given = bool(self.shapes) and all(shape and min(shape) >= 1 for shape in self.shapes)
        require(given, "shapes", self.shapes, "must name at least one shape, with sizes >= 1")
        self.encoder, self.function, self.decoder = encoder, function, decoder

    def inject(self, x: Tensor) -> Any:
        """Return what the encoder makes of images, a list as a tuple."""
        injection = self.encoder(x)
        return tuple(injection) if isinstance(injection, list) else injection

    def initial_state(self, injection: Any) -> Tensor:
        """Return zeros, shape (B, numbers of all states of an image)."""
        tensors: list[Tensor] = []
        map_tensors(tensors.append, injection)
        like = next(self.parameters(), tensors[0])  # under autocast the injection is too coarse for a solver
        size = sum(torch.Size(shape).numel() for shape in self.shapes)
        return like.new_zeros(len(tensors[0]), size)

    def cell(self, z: Tensor, injection: Any) -> Tensor:
        """Return f(z, x), packed."""
        states = self.function(self.states_of(z), injection)
        states = (states,) if isinstance(states, Tensor) else states
        found = tuple(tuple(state.shape[1:]) for state in states)
        require(found == self.shapes, "shapes", self.shapes, f"must be {found}, as the states that f returns")
        return torch.cat([state.flatten(1) for state in states], dim=1)

    def head(self, z: Tensor) -> Tensor:
        """Return the logits of packed states."""
        logits: Tensor = self.decoder(self.states_of(z))
        return logits

    def states_of(self, z: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the states that ``z`` packs, shape (B, ...) each: a tensor, or a tuple of several."""
        parts = torch.split(z, [torch.Size(shape).numel() for shape in self.shapes], dim=1)
        states = tuple(part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True))
        return states[0] if len(states) == 1 else states
