"""Data modules: images with labels and original indices, for training and for certification."""

from deqcert.data.base import ImageDataModule
from deqcert.data.cifar10 import CIFAR10
from deqcert.data.decoding import read_image
from deqcert.data.digits import Digits
from deqcert.data.image_folder import ImageFolder
from deqcert.data.images import CertificationSet, TensorImages

__all__ = ["CIFAR10", "CertificationSet", "Digits", "ImageDataModule", "ImageFolder", "TensorImages", "read_image"]
