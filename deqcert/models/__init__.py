"""Networks: the DEQ contract, the multiscale DEQ, and explicit ones to compare with. Plain modules, no Lightning."""

from deqcert.models.base import DEQ, Start
from deqcert.models.certified import (
    BoundedLogits,
    IntervalClassifier,
    LipschitzClassifier,
    TrainableInterval,
    TrainableLipschitz,
)
from deqcert.models.compiled import compile_deq
from deqcert.models.function import FunctionDEQ
from deqcert.models.mdeq import MDEQ, MDEQInjection
from deqcert.models.resnet import CifarResNet, ResNet50

__all__ = [
    "DEQ",
    "MDEQ",
    "BoundedLogits",
    "CifarResNet",
    "FunctionDEQ",
    "IntervalClassifier",
    "LipschitzClassifier",
    "MDEQInjection",
    "ResNet50",
    "Start",
    "TrainableInterval",
    "TrainableLipschitz",
    "compile_deq",
]
