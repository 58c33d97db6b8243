"""Full-batch solvers: `scipy.optimize` on the compiled loss and gradient over all rows.

The objective is computed in float64, whatever the input's dtype. Where no op couples the rows, the rows go through in
blocks of fixed size whose values and gradients are added in order, so the bits depend neither on the number of
threads nor on memory. Dropout and noise are functions of (seed, row, column) here: drawn once, the same in every
evaluation, or there would be nothing to converge to.

Sources: Nocedal & Wright, "Numerical Optimization" (2006), chapters 5 to 7; Byrd et al. (1995) for L-BFGS-B; Schmidt,
Fung, Rosales (2009) for L1 by w = u − v.
"""

from .objective import plan
from .solve import fit

__all__ = ["fit", "plan"]
