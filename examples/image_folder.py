# %% [markdown]
# # A folder of images of your own
#
# Two photographs that come with scikit-learn, cut into small images, stand for your data: a folder per class in
# `train` and in `val`. A small ResNet is trained on them under noise and certified; the comments show the same from
# the command line.

# %%
import tempfile
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from deqcert.data import ImageFolder
from deqcert.lightning import CertifiedRadius, Trainer
from deqcert.models import CifarResNet
from deqcert.smoothing import Smoothing, Standard
from deqcert.training import DEQClassifier

SIZE, SIGMA = 32, 0.25
workplace = tempfile.TemporaryDirectory()
root = Path(workplace.name)

# %% [markdown]
# ## `root/{train,val}/<class>/*`
#
# The left half of each photograph is for training, the right half is held out.

# %%
sample = load_sample_images()
for name, pixels in zip(("temple", "flower"), sample.images, strict=True):
    photograph = Image.fromarray(pixels)
    half = photograph.width // 2
    for split, left in (("train", 0), ("val", half)):
        folder = root / split / name
        folder.mkdir(parents=True)
        for top in range(0, photograph.height - SIZE, SIZE):
            for x in range(left, left + half - SIZE + 1, SIZE):
                photograph.crop((x, top, x + SIZE, top + SIZE)).save(folder / f"{top:03d}_{x:03d}.png")

# %% [markdown]
# ## Data and network
#
# Images are resized to `resize` on their shorter side and cropped to `image_size`; what is certified is the cropped
# image. The network normalizes. Classes are numbered in the sorted order of their folders.

# %%
data = ImageFolder(str(root), image_size=SIZE, resize=SIZE, num_classes=2, batch_size=32, skip=24)
torch.manual_seed(0)
network = CifarResNet(depth=8, num_classes=2, image_size=SIZE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
print("classes:", *data.load_split("train").classes)

# %% [markdown]
# ## Train and certify
#
#     deqcert fit --model.network deqcert.models.CifarResNet … --data deqcert.data.ImageFolder --data.root ROOT …
#     deqcert certify --config runs/…/fit.yaml --config configs/certify/standard.yaml --ckpt_path …

# %%
quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
module = DEQClassifier(network, sigma=SIGMA, optimizer=lambda p: torch.optim.Adam(p, lr=5e-3))
trainer = Trainer(max_epochs=2, limit_val_batches=0, enable_checkpointing=False, enable_model_summary=False, **quiet)
trainer.fit(module, data)

certificates = Trainer(callbacks=[CertifiedRadius()], **quiet).certify(
    module, data, Smoothing(SIGMA), Standard(n=200), ledger_dir=str(root / "run")
)

# %%
correct = sum(each.prediction == each.label for each in certificates)
print(f"{correct} of {len(certificates)} held-out images certified with the right class")
print("files of the run:", *sorted(path.name for path in (root / "run").iterdir()))
workplace.cleanup()
