"""The compiled backend: hands plans to ``fastae._core``, which runs whole epochs with the GIL released."""

from __future__ import annotations

import os

import numpy as np

from ... import _core
from ...catalog import FIRST_REGISTERED
from ...plan import schema
from ...plan.plan import Job, Plan, Source, Spaces


def instruction_sets() -> list[str]:
    """Instruction sets of this build that the machine has, best last."""
    return _core.instruction_sets()


def _chosen_isa() -> str:
    """``FASTAE_ISA``, else the best set present."""
    present = instruction_sets()
    if not present:
        raise ImportError("fastae._core was built without kernels for this machine; rebuild with a C++17 compiler")
    wanted = os.environ.get("FASTAE_ISA", "")
    if wanted and wanted not in present:
        raise ValueError(
            f"FASTAE_ISA={wanted!r} is not available; this build and machine have {', '.join(present)}; "
            "unset FASTAE_ISA to choose automatically"
        )
    return wanted or present[-1]


class NativeBackend:
    """Runs plans on the kernels of one instruction set.

    isa : name of an instruction set, or None for ``FASTAE_ISA``, else the best one present.
    vnni : whether 8-bit products may use AVX512_VNNI where the processor has it
    """

    name = "native"
    device = "cpu"

    def allocate(self, plan: Plan) -> Spaces:
        """Memory for a plan."""
        return plan.allocate()

    def place(self, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        """Sources where steps read them best: as they are."""
        return sources

    def __init__(self, isa: str | None = None, *, vnni: bool = True):
        self.vnni = vnni
        self.isa = _chosen_isa() if isa is None else isa
        if self.isa not in instruction_sets():
            raise ValueError(
                f"instruction set {isa!r} is not available; this build and machine have {', '.join(instruction_sets())}"
            )

    def __repr__(self) -> str:
        return f"NativeBackend(isa={self.isa!r})"

    def compile(self, plan: Plan) -> _core.Plan:
        """The plan's records in the form that ``run`` takes."""
        buffers, ops, floats = plan.encode()
        return _core.Plan(
            self.isa,
            plan.dtype == np.float64,
            plan.batch,
            buffers,
            ops,
            floats,
            list(plan.sizes),
            plan.n_values,
            plan.n_scalars,
            plan.row_local,
            _registered(plan),
            self.vnni,
        )

    def encoder(self, handle: _core.Plan, spaces: list[np.ndarray], *, allow_nan: bool) -> _core.Encoder:
        """A call from rows to a prepared inference plan's result; None where X or out are not as kernels need them."""
        return _core.Encoder(handle, spaces[schema.ARENA], spaces[schema.THETA], 2 if allow_nan else 1)

    def run(self, handle: _core.Plan, job: Job) -> int:
        """Runs the job's steps; returns how many finished (fewer when a step's values were not finite)."""
        return handle.run(
            job.spaces,
            [_source_tuple(source) for source in job.sources],
            job.n_rows,
            job.order,
            job.first_batch,
            job.n_steps,
            job.phases,
            job.scalars,
            job.values,
            job.seed,
            job.epoch,
            job.n_threads,
            job.progress,
            job.first_row,
        )

    def permutation(self, seed: int, epoch: int, n: int) -> np.ndarray:
        """Order of n rows in an epoch, int64; a function of (seed, epoch)."""
        return _core.permutation(self.isa, seed, epoch, n)

    def all_finite(self, array: np.ndarray, n_threads: int = 1) -> bool:
        """Whether a 2-D array with contiguous rows has neither NaN nor infinity."""
        code = schema.source_code(array.dtype)
        if code is None:
            return bool(np.isfinite(array).all())
        return _core.all_finite(self.isa, array, code, n_threads)

    def peak_int8_gops(self, seconds: float = 0.2) -> float:
        """Measured ceiling of 8-bit multiply-adds from registers on one thread, in 10⁹ operations a second."""
        return _core.int8_rate(self.isa, self.vnni, seconds) / 1e9

    def peak_gflops(self, dtype: str = "float32", seconds: float = 0.2) -> float:
        """Measured ceiling of multiply-adds from registers on one thread, in GFLOP/s.

        dtype : "float32", "float64", or "bfloat16" for the instructions that this set multiplies bfloat16 with
        """
        if dtype == "bfloat16":
            return _core.bf16_rate(self.isa, seconds) / 1e9
        return _core.fma_rate(self.isa, np.dtype(dtype) == np.float64, seconds) / 1e9


def _registered(plan: Plan) -> list[tuple]:
    """The formulas registered at run time that a plan uses."""
    ids = {op.ints.get(name, 0) for op in plan.ops for name in ("activation", "loss", "penalty")}
    if max(ids, default=0) < FIRST_REGISTERED:
        return []
    from ...registry import FORMULAS
    from ..registered import native

    return [native(FORMULAS[i], plan.dtype) for i in sorted(ids) if i >= FIRST_REGISTERED]


def _source_tuple(source: Source) -> tuple:
    data, code = source.data, source.code
    if source.indptr is None:
        return data, code, data.shape[1], None, None, source.weight
    return data, code, source.columns, source.indptr, source.indices, source.weight
