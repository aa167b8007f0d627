"""Attacks that training objectives run against the network while it is frozen. Torch only."""

from deqcert.training.attacks.base import Attack, Classifier, Score, ScoreFunction
from deqcert.training.attacks.ddn import DDN
from deqcert.training.attacks.frozen import frozen
from deqcert.training.attacks.noise import shift_noise
from deqcert.training.attacks.pgd import PGD
from deqcert.training.attacks.warm_started import WarmStarted

__all__ = ["DDN", "PGD", "Attack", "Classifier", "Score", "ScoreFunction", "WarmStarted", "frozen", "shift_noise"]
