"""Layouts that kernels share with Python: a launch's record and a run's step (csrc/cuda/device.cuh)."""

from __future__ import annotations

import numpy as np

from ...plan import schema

MAX_SOURCES = 4
FORMULA_EXTRA = 3  # of a launch's extra: the address of a formula registered at run time

SLOT = np.dtype([("p", np.uint64), ("ld", np.int64), ("rows", np.int64), ("columns", np.int64)])
LAUNCH = np.dtype(
    [("step", np.uint64), ("m", np.int64), ("work", np.uint64), ("slot", SLOT, (schema.MAX_SLOTS,)),
     ("i", np.int64, (schema.MAX_INTS,)), ("f", np.float64, (schema.MAX_FLOATS,)), ("extra", np.int64, (4,))]
)  # fmt: skip
SOURCE = np.dtype(
    [("data", np.uint64), ("dtype", np.int64), ("row_stride", np.int64), ("columns", np.int64), ("indptr", np.uint64),
     ("indices", np.uint64), ("weight", np.uint64)]
)  # fmt: skip
STEP = np.dtype(
    [("number", np.int64), ("start", np.int64), ("stopped", np.int64), ("batch", np.int64), ("n_values", np.int64),
     ("n_scalars", np.int64), ("first_row", np.int64), ("order", np.uint64), ("first", np.int64), ("values", np.uint64),
     ("scalars", np.uint64), ("seed", np.uint64), ("epoch", np.uint64), ("source", SOURCE, (MAX_SOURCES,))]
)  # fmt: skip
