# %% [markdown]
# # A model of torchdeq, or any other f(z, x)
#
# torchdeq finds the fixed point of a function f(z, x), where z may be several tensors and x several injections.
# `FunctionDEQ` packs the states into the one tensor that the solvers of deqcert see. The model below is built as one
# for torchdeq would be; comments show where torchdeq's own lines go, so that this file runs without it.

# %%
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deqcert.data import Digits
from deqcert.data.images import to_unit_interval
from deqcert.implicit import OneStep
from deqcert.models import FunctionDEQ
from deqcert.smoothing import Serialized, SmoothedClassifier, SolvedClassifier, Stream
from deqcert.solvers import Anderson

SIGMA = 0.25  # of the noise, in pixels of [0, 1]

# %% [markdown]
# ## The parts
#
# Two states, 8 channels of 8 × 8 and 16 channels of 4 × 4, and an injection for each.


# %%
class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(1, 16, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.fine(images), self.coarse(images)


class Function(nn.Module):
    """f(z, x), called with the tuples of states and of injections."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.down, self.up = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.Conv2d(16, 8, 1)
        # torchdeq: apply_norm(self, "weight_norm")

    def forward(self, z: tuple[Tensor, Tensor], x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        (fine, coarse), (to_fine, to_coarse) = z, x
        upwards = F.interpolate(self.up(coarse), scale_factor=2)
        # Halved, so that f contracts: solves converge in few steps.
        fine_next = torch.tanh((self.fine(fine) + upwards) / 2 + to_fine)
        return fine_next, torch.tanh((self.coarse(coarse) + self.down(fine)) / 2 + to_coarse)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Linear(8 * 64, 10), nn.Linear(16 * 16, 10)

    def forward(self, z: tuple[Tensor, Tensor]) -> Tensor:
        logits: Tensor = self.fine(z[0].flatten(1)) + self.coarse(z[1].flatten(1))
        return logits


# %% [markdown]
# ## The adapter
#
# torchdeq's weight normalization keeps its result in `weight`, where neither the optimizer nor a loaded checkpoint
# changes it: `reset_norm` computes it again. In torchdeq it stands at the top of `forward`; here `inject` begins
# every solve.


# %%
class Adapted(FunctionDEQ):
    def __init__(self) -> None:
        super().__init__(
            Encoder(),
            Function(),
            Decoder(),
            shapes=[[8, 8, 8], [16, 4, 4]],
            solver=Anderson(max_steps=6, tolerance=1e-2),  # for training
        )

    # torchdeq:
    # def inject(self, x):
    #     reset_norm(self.function)
    #     return super().inject(x)


# %% [markdown]
# ## Training
#
# A model that torchdeq has trained needs none: `network.load_state_dict(...)`. Any training code works; this loop
# uses deqcert's one-step gradient through the fixed point. (`deqcert.training.DEQClassifier` does the same with
# Lightning.)

# %%
torch.manual_seed(0)
network = Adapted()
optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)


def logits(noisy: Tensor) -> Tensor:
    injection = network.inject(noisy)
    start = network.initial_state(injection)
    solved = OneStep().fixed_point(lambda z: network.cell(z, injection), start, network.solver)
    return network.head(solved.value)


for _epoch in range(4):
    for pixels, labels, _indices in Digits(batch_size=128).train_dataloader():
        images = pixels / 255
        loss = F.cross_entropy(logits(images + SIGMA * torch.randn_like(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
network.eval()
# torchdeq: once the weights are final, remove_norm(network.function) makes them plain ones and every solve cheaper

# %% [markdown]
# ## Certification

# %%
f = SolvedClassifier(network, Anderson(max_steps=30, tolerance=1e-3))
g = SmoothedClassifier(f, SIGMA)
_, solution = network.solve(to_unit_interval(Digits().load_split("test").images[:100]), f.solver)
print(f"{solution.steps.float().mean():.1f} evaluations per solve, {solution.converged.float().mean():.0%} converged")

certified = []
for image, label, index in Digits(max_examples=6).certification_set():
    sampling = Serialized(n=1000, proposal=Anderson(max_steps=2))
    certificate = g.certify(image, sampling=sampling, stream=Stream(seed=0, index=index))
    certified.append((label, certificate))
    print(f"digit {index}: a {label}, predicted {certificate.prediction}, radius {certificate.radius:.2f}")
