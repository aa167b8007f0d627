"""Weights of other programs to ours, and ours to safetensors: every name and shape is accounted for."""

from deqcert.checkpoints.files import SAFETENSORS
from deqcert.interchange.conversion import Conversion, convert_weights
from deqcert.interchange.files import read_weights, write_checkpoint, write_safetensors

__all__ = ["SAFETENSORS", "Conversion", "convert_weights", "read_weights", "write_checkpoint", "write_safetensors"]
