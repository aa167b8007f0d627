"""Checkpoints: files that can neither run code nor name it, and the networks that they hold. Torch only."""

from deqcert.checkpoints.files import read_checkpoint, save_checkpoint
from deqcert.checkpoints.networks import LoadedNetwork, load_network, network_weights

__all__ = ["LoadedNetwork", "load_network", "network_weights", "read_checkpoint", "save_checkpoint"]
