"""The contract of a deep equilibrium classifier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from deqcert.errors import require
from deqcert.solvers import Function, Solution, Solver, Workspace

Start = Literal["zero", "anchor"]
"""Where a solve starts: the cold start, or the anchored one that a network has computed."""


class DEQ(nn.Module, ABC):
    """A classifier whose features are the fixed point z* = cell(z*, inject(x)).

    Implement :meth:`inject`, :meth:`cell`, :meth:`head` and :meth:`initial_state` and everything here trains and
    certifies your network. Three rules make certificates true: in evaluation mode each method must treat the rows of a
    batch separately (no batch statistics), must not draw random numbers, and must not leave anything on ``self`` for
    another method, because threads share the network.

    Args:
        solver: Solver of :meth:`forward`; training and certification bring their own.
    """

    def __init__(self, solver: Solver) -> None:
        super().__init__()
        self.solver = solver

    @abstractmethod
    def inject(self, x: Tensor) -> Any:
        """Compute everything that depends on the input only: images in [0, 1], with noise added, shape (B, C, H, W).

        Returns:
            A tensor, or a (nested, possibly named) tuple of tensors and Nones, with one row per image in each tensor.
        """

    @abstractmethod
    def initial_state(self, injection: Any) -> Tensor:
        """Return the cold start, shape (B, ...)."""

    def anchor(self, injection: Any) -> Tensor:
        """Return the anchored start, shape (B, ...): a function of the injection, row by row; here the cold start."""
        return self.initial_state(injection)

    @property
    def start_kind(self) -> str:
        """What :meth:`anchor` starts from, e.g. ``mean``."""
        return "zero"

    @property
    def start_sigma(self) -> float | None:
        """Noise that the anchored start was computed under; None if it does not depend on any, 0 if it was not yet."""
        return None

    def start_state(self, injection: Any, start: Start) -> Tensor:
        """Return the state that a solve starts from, shape (B, ...)."""
        return self.anchor(injection) if start == "anchor" else self.initial_state(injection)

    @abstractmethod
    def cell(self, z: Tensor, injection: Any) -> Tensor:
        """Return one evaluation of the cell, shape of ``z``."""

    @abstractmethod
    def head(self, z: Tensor) -> Tensor:
        """Return the logits of the states ``z``, shape (B, classes)."""

    def solve(
        self,
        x: Tensor,
        solver: Solver,
        start: Tensor | Start | Callable[[Any], Tensor] = "zero",
        workspace: Workspace | None = None,
    ) -> tuple[Tensor, Solution]:
        """Inject, solve without a graph, and classify images ``x``, shape (B, C, H, W).

        It starts from a state, from what a function makes of the injection, from the cold start "zero" or from the
        :meth:`anchor`; for ``workspace`` see :meth:`Solver.solve`.

        Returns:
            Logits, shape (B, classes), and the solution.
        """
        with torch.no_grad():
            injection = self.inject(x)
            if isinstance(start, Tensor):
                state = start
            else:
                state = start(injection) if callable(start) else self.start_state(injection, start)

            def function(injection: Any) -> Function:
                return lambda z: self.cell(z, injection)

            def restrict(rows: Tensor) -> Function:
                return function(map_tensors(lambda tensor: tensor[rows], injection))

            tensors: list[Tensor] = []
            map_tensors(tensors.append, injection)
            by_rows = all(tensor.dim() and len(tensor) == len(x) for tensor in tensors)
            solution = solver.solve(function(injection), state, restrict if by_rows else None, workspace)
            return self.head(solution.value), solution

    def for_inference(self) -> DEQ:
        """Return a network of the same function that is faster to evaluate and cannot be trained; this one by default.

        It is called in evaluation mode. Return a copy of this network (``copy.copy``) with the faster parts put in, not
        an object of another class: then nothing that a subclass adds or overrides can be lost. The copy may share
        tensors with this network.
        """
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Classify by a cold start and a full solve; shape (B, C, H, W) to (B, classes). No gradient."""
        return self.solve(x, self.solver)[0]


def map_tensors(function: Callable[[Tensor], object], injection: Any) -> Any:
    """Apply ``function`` to every tensor of an injection."""
    if isinstance(injection, Tensor):
        return function(injection)
    if isinstance(injection, tuple):
        mapped = (map_tensors(function, item) for item in injection)
        return type(injection)(*mapped) if hasattr(injection, "_fields") else tuple(mapped)
    return injection


class StatedNetwork(nn.Module):
    """A network whose settings are known to checkpoints and data, which are refused if they do not fit.

    Attributes:
        architecture: Settings of the function in evaluation mode, as plain data.
        mean: Normalization of the images, shape (C, 1, 1); neither it nor ``std`` is in checkpoints.
    """

    architecture: dict[str, Any]
    num_classes: int
    image_size: int
    image_channels: int
    mean: Tensor
    std: Tensor

    UNSEEN: ClassVar[tuple[str, ...]] = ("mean", "std", "image_size")
    """Settings that names and shapes of the weights do not show, or not always."""

    def _state(self, settings: Mapping[str, Any], *omitted: str) -> None:
        """Take the ``locals()`` of the constructor, of which those ``omitted`` do not belong to the architecture."""
        self.architecture = {
            name: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
            for name, value in settings.items()
            if name not in ("self", "__class__", *omitted)
        }
        self.num_classes, self.image_size = settings["num_classes"], settings["image_size"]
        self.image_channels = settings.get("image_channels", 3)
        mean, std = settings["mean"], settings["std"]
        require(self.num_classes >= 2, "num_classes", self.num_classes, "must be >= 2")
        fitting = len(mean) == len(std) == self.image_channels
        require(fitting, "mean", tuple(mean), f"mean and std need {self.image_channels} entries")
        require(min(std) > 0, "std", tuple(std), "must all be > 0")
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
