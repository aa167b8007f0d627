# %% [markdown]
# # A plain classifier from torchvision, certified
#
# Any `nn.Module` from images in [0, 1] to logits can be certified by standard randomized smoothing. Here it is
# torchvision's DenseNet, made small for gray 8 × 8 digits and trained under noise for a few seconds.

# %%
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.transforms.v2 import Normalize

from deqcert.data import Digits
from deqcert.smoothing import SmoothedClassifier, Standard
from deqcert.statistics import ABSTAIN, CertificationRule, GroupSequential

SIGMA = 0.25  # of the noise, in pixels of [0, 1]

# %% [markdown]
# ## The classifier
#
# Noise is added to pixels in [0, 1], so the normalization belongs into the classifier, as its first layer.

# %%
torch.manual_seed(0)
network = torchvision.models.DenseNet(growth_rate=8, block_config=(2, 2), num_init_features=16, num_classes=10)
network.features.conv0 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
network.features.pool0 = nn.Identity()
classifier = nn.Sequential(Normalize([0.305], [0.376]), network)

# %% [markdown]
# ## Training under noise
#
# A classifier that has never seen noise abstains nearly everywhere. These few lines are plain PyTorch; your own
# training code needs one more line, the noise. (`deqcert.training.DEQClassifier` trains any network too, also with
# other objectives.)

# %%
data = Digits(batch_size=128)
optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-2)
for _epoch in range(8):
    for pixels, labels, _indices in data.train_dataloader():
        images = pixels / 255
        loss = F.cross_entropy(classifier(images + SIGMA * torch.randn_like(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
classifier.eval()  # batch normalization must not mix images: certification refuses training mode

# %% [markdown]
# ## Certification
#
# `GroupSequential` stops where more noisy samples would add little; two sides bound the runner-up as well, which
# certifies more at small radii.

# %%
g = SmoothedClassifier(classifier, SIGMA)
sampling = Standard(n=1000, stopping=GroupSequential())
rule = CertificationRule(alpha=0.001, sides="two")
certified = []
for image, label, index in Digits(max_examples=6).certification_set():
    certificate = g.certify(image, sampling=sampling, rule=rule)
    certified.append((label, certificate))
    certain = f"is {certificate.prediction} within radius {certificate.radius:.2f}"
    print(f"digit {index}: a {label},", "abstains" if certificate.prediction == ABSTAIN else certain)
