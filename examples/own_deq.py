# %% [markdown]
# # A DEQ of your own, trained and certified
#
# Four methods make a module a DEQ of deqcert. This one classifies scikit-learn's 8 × 8 digits, which are embedded.
# It is trained under noise for a few seconds, then 20 test digits are certified by serialized randomized smoothing
# (SRS).

# %%
import tempfile

import torch
from torch import Tensor, nn

from deqcert.data import Digits
from deqcert.implicit import OneStep
from deqcert.lightning import CertifiedRadius, Trainer
from deqcert.models import DEQ
from deqcert.smoothing import Serialized, Smoothing
from deqcert.solvers import Anderson
from deqcert.training import DEQClassifier

SIGMA = 0.25  # of the noise, in pixels of [0, 1]
CONVERGED = Anderson(max_steps=30, tolerance=1e-3)

# %% [markdown]
# ## The network
#
# `inject` computes what depends on the image only. A solver looks for the fixed point z = `cell`(z, injection), from
# `initial_state`. `head` makes logits of it. In evaluation mode no method may mix the rows of a batch, draw random
# numbers or keep anything on `self`: a certificate is about a function of one image.


# %%
class DigitsDEQ(DEQ):
    def __init__(self, width: int = 64) -> None:
        super().__init__(solver=Anderson(max_steps=8, tolerance=1e-2))  # for training
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, width))
        self.mixing = nn.Linear(width, width)
        self.classifier = nn.Linear(width, 10)

    def inject(self, x: Tensor) -> Tensor:
        encoded: Tensor = self.encoder(x)
        return encoded

    def initial_state(self, injection: Tensor) -> Tensor:
        return torch.zeros_like(injection)

    def cell(self, z: Tensor, injection: Tensor) -> Tensor:
        return torch.tanh(self.mixing(z) + injection)

    def head(self, z: Tensor) -> Tensor:
        logits: Tensor = self.classifier(z)
        return logits


# %% [markdown]
# ## Training
#
# `DEQClassifier` adds the noise, solves, and differentiates through the fixed point.

# %%
torch.manual_seed(0)
module = DEQClassifier(DigitsDEQ(), sigma=SIGMA, gradient=OneStep(), optimizer=lambda p: torch.optim.Adam(p, lr=5e-3))
trainer = Trainer(
    accelerator="cpu",
    max_epochs=12,
    limit_val_batches=0,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(module, Digits(batch_size=128))

# %% [markdown]
# ## Certification
#
# `Smoothing` says what is certified, `Serialized` how votes are taken: two Anderson steps for each noisy sample from
# the fixed point of an earlier one, and an audit that pays for the shortcut. The directory of the run has all votes;
# the same call resumes a run that was interrupted.

# %%
with tempfile.TemporaryDirectory() as folder:
    certificates = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[CertifiedRadius(alpha=0.001)]
    ).certify(
        module,
        Digits(max_examples=20),
        Smoothing(SIGMA, solver=CONVERGED),
        Serialized(n=1000, proposal=Anderson(max_steps=2)),
        ledger_dir=folder,
    )

# %%
correct = [each for each in certificates if each.prediction == each.label]
print(f"{len(correct)} of {len(certificates)} digits certified with the right class")
print(f"mean of their radii: {sum(each.radius for each in correct) / len(correct):.2f}")
