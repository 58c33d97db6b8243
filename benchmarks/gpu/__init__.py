"""One script for a borrowed GPU: ``python -m benchmarks.gpu --out FILE``.

Ceilings, every kernel and estimator against float64, determinism, a graph against single launches, then the benchmark
table with floors and peers. Each part is caught on its own, so that one failure does not cost the others; ``--parts``
chooses, ``--seconds`` bounds the whole. ``--rehearse`` goes through all of it on the CPU, by the kernels compiled for
the host, at sizes that say nothing of speed.
"""
