"""Fixed points: solve ``z = F(z)`` for every row of a batch, each row on its own.

A solver is a frozen configuration object; :meth:`Solver.solve` takes the map and a start and returns a
:class:`Solution`. Splittings turn an equation of a monotone operator into such a map. Torch only.
"""

from deqcert.solvers.anderson import Anderson
from deqcert.solvers.base import Function, Iteration, Solution, Solver
from deqcert.solvers.broyden import Broyden
from deqcert.solvers.picard import Picard
from deqcert.solvers.rows import Workspace
from deqcert.solvers.splitting import LinearOperator, Splitting, forward_backward, peaceman_rachford

__all__ = [
    "Anderson",
    "Broyden",
    "Function",
    "Iteration",
    "LinearOperator",
    "Picard",
    "Solution",
    "Solver",
    "Splitting",
    "Workspace",
    "forward_backward",
    "peaceman_rachford",
]
