"""Networks: the DEQ contract, the multiscale DEQ, and explicit ones to compare with. Plain modules, no Lightning."""

from deqcert.models.anchored import AnchoredClassifier
from deqcert.models.base import DEQ
from deqcert.models.compiled import compile_deq
from deqcert.models.mdeq import MDEQ, MDEQInjection
from deqcert.models.resnet import CifarResNet, ResNet50

__all__ = ["DEQ", "MDEQ", "AnchoredClassifier", "CifarResNet", "MDEQInjection", "ResNet50", "compile_deq"]
