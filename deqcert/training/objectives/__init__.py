"""What a training step minimises: losses on noisy images, plain or hardened. Torch only."""

from deqcert.training.objectives.base import Loss, Objective, TrainingContext
from deqcert.training.objectives.catrs import CATRS
from deqcert.training.objectives.consistency import Consistency
from deqcert.training.objectives.few_step import FewStep
from deqcert.training.objectives.gaussian import Gaussian
from deqcert.training.objectives.smoothadv import SmoothAdv

__all__ = ["CATRS", "Consistency", "FewStep", "Gaussian", "Loss", "Objective", "SmoothAdv", "TrainingContext"]
