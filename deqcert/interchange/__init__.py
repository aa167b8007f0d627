"""Weights from elsewhere, and weights for elsewhere.

In come checkpoints of the public DEQ, SRS and randomized-smoothing repositories, of torchvision, or safetensors; out go
checkpoints that ``certify`` and ``model.weights`` take, or safetensors. Every name and every shape is accounted for:
what a file has and the network has not is refused, or left out for a stated reason.
"""

from deqcert.interchange.conversion import Conversion, convert_weights
from deqcert.interchange.files import read_weights, write_checkpoint, write_safetensors

__all__ = ["Conversion", "convert_weights", "read_weights", "write_checkpoint", "write_safetensors"]
