"""Networks: the DEQ contract and the multiscale DEQ. Plain ``nn.Module``s, no Lightning."""

from deqcert.models.base import DEQ
from deqcert.models.compiled import CompiledDEQ
from deqcert.models.mdeq import MDEQ, MDEQInjection

__all__ = ["DEQ", "MDEQ", "CompiledDEQ", "MDEQInjection"]
