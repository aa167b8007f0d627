"""Anderson mixing whose weights come from the network instead of a least-squares problem."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from deqcert.errors import SettingError, require
from deqcert.solvers.base import Function, Mixer, Solver
from deqcert.solvers.history import PairHistory
from deqcert.solvers.rows import Workspace, inner_products, weighted_sum


@dataclass(frozen=True)
class LearnedMixing(Solver):
    """X_{k+1} = Σ_j α_j (X_j + β G_j) over all pairs so far, where the network predicts α and β of each step.

    After Bai, Koltun and Kolter, "Neural deep equilibrium solvers" (ICLR 2022). The weights of a row depend on the
    inner products of its own gaps and the norm of its image only, see :class:`deqcert.models.mixing.LearnedMixer`;
    ``deqcert anchor --mixing_steps`` trains them. These settings solve nothing before they are :meth:`bound_to` the
    mixer of a network, which :meth:`deqcert.models.DEQ.solve` does.

    Args:
        max_steps: Maximum number k of steps per row, from 1 to the steps that the mixer was trained for. With
            tolerance 0 every row takes all of them, in k evaluations of F, or k + 1 if the best iterate is returned.
        tolerance: A row stops once its residual is at most this, >= 0. 0 stops at an exact fixed point only.
        stop: Residual that is compared with the tolerance: "relative" or "absolute".
        iterate: Returned iterate: "last" is X_k, "best" the one of least residual among X_1, ..., X_k, never X_0.
    """

    max_steps: int = 3

    def bound_to(self, mixer: Mixer | None) -> Solver:
        """Return the solver that mixes by ``mixer``.

        Raises:
            SettingError: If there is no mixer, or one for fewer steps.
        """
        if mixer is None:
            raise SettingError(
                "solver",
                type(self).__name__,
                "needs a network with learned mixing (model.network.mixing_steps); deqcert anchor --mixing_steps "
                "trains it",
            )
        require(
            self.max_steps <= mixer.steps,
            "solver.max_steps",
            self.max_steps,
            f"must be at most {mixer.steps}, the mixing_steps of the network",
        )
        settings = {each.name: getattr(self, each.name) for each in fields(LearnedMixing)}
        return _BoundMixing(**settings, mixer=mixer)

    def initialise(self, start: Tensor, workspace: Workspace) -> PairHistory:
        """Refuse: only a bound solver has weights."""
        raise SettingError("solver", type(self).__name__, "can only be used where a network gives it its mixer")

    def advance(self, state: PairHistory, iterate: Tensor, image: Tensor, gap: Tensor) -> Tensor:
        """Refuse, as above."""
        raise SettingError("solver", type(self).__name__, "can only be used where a network gives it its mixer")


@dataclass(frozen=True)
class _BoundMixing(LearnedMixing):
    """Learned mixing by the mixer of one network."""

    mixer: Mixer = field(kw_only=True)

    def initialise(self, start: Tensor, workspace: Workspace) -> PairHistory:
        """Take room for all pairs."""
        return PairHistory.empty("learned", self.max_steps, start, workspace)

    def advance(self, state: PairHistory, iterate: Tensor, image: Tensor, gap: Tensor) -> Tensor:
        """Store the pair and return the mixed step."""
        _, pairs = state.remember(image, gap)
        return _mixed(self.mixer, state.images[:pairs], state.gaps[:pairs], state.gram[:, :pairs, :pairs])


def unrolled(function: Function, start: Tensor, mixer: Mixer) -> Iterator[Tensor]:
    """Yield the iterates X_1, X_2, … of learned mixing with their graph, to train the mixer.

    Args:
        function: F.
        start: X_0, shape (B, D).
        mixer: Gives the weights of its ``steps`` steps.

    Yields:
        Shape (B, D) each, the same numbers as those of :class:`LearnedMixing`.
    """
    iterate = start
    images: list[Tensor] = []
    gaps: list[Tensor] = []
    for _ in range(mixer.steps):
        image = function(iterate).to(start.dtype)
        images.append(image)
        gaps.append(image - iterate)
        stacked = torch.stack(gaps)
        gram = torch.stack([inner_products(stacked, gap) for gap in gaps], dim=1).double()
        iterate = _mixed(mixer, torch.stack(images), stacked, gram)
        yield iterate


def _mixed(mixer: Mixer, images: Tensor, gaps: Tensor, gram: Tensor) -> Tensor:
    """Return Σ_j α_j (X_j + β G_j), shape (B, D), from pairs of shape (m, B, D) and their Gram matrix."""
    weights, damping = mixer(gram, images[-1].square().sum(dim=1))
    # Around the images: α on the newest and β = 1 then give the plain step without rounding.
    return weighted_sum(images, weights) + weighted_sum(gaps, weights * (damping - 1)[:, None])
