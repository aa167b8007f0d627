"""Monotone equilibrium networks: a fixed point that exists and is unique, and Lipschitz constants that are proved."""

from deqcert.monotone.convolution import ConvLBEN, ConvMonDEQ
from deqcert.monotone.dense import LBEN, MonDEQ
from deqcert.monotone.interval import IBPMonDEQ
from deqcert.monotone.network import MonotoneDEQ

__all__ = ["LBEN", "ConvLBEN", "ConvMonDEQ", "IBPMonDEQ", "MonDEQ", "MonotoneDEQ"]
