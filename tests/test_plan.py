"""Plans that no estimator of this version makes, but that backends must run."""

import numpy as np

from fastae.plan import schema
from fastae.plan.plan import Job, PlanBuilder, Source


def test_input_and_target_from_two_sources(backend):
    """Neither gathered buffer may stand for the other when rows are read where they lie."""
    builder = PlanBuilder(np.float32, 4)
    for name in ("x", "target"):
        builder.buffer(name, schema.BATCH_ROWS, 3)
    builder.op("gather", x="x", source=0)
    builder.op("gather", x="target", source=1)
    builder.op("loss", y="x", target="target", loss=0, value=builder.value(), scale=1.0)
    plan = builder.build()
    x, target = np.ones((6, 3), np.float32), np.zeros((6, 3), np.float32)
    values = np.zeros((2, 1))
    job = Job(plan.allocate(), (Source(x, columns=3), Source(target, columns=3)), 6, n_steps=2, values=values)
    assert backend.run(backend.compile(plan), job) == 2
    np.testing.assert_array_equal(values, 3.0)
