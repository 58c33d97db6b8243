"""One script for a borrowed GPU: ``python -m benchmarks.gpu --out FILE``.

Ceilings, whole fits beside the CPU, determinism, a graph against single launches, the benchmark table with floors and
peers, and in the time that is left every kernel by the test suite. Each part is caught on its own, so that one failure
does not cost the others; ``--parts`` chooses, ``--seconds`` bounds the whole. ``--rehearse`` goes through all of it on
the CPU, by the kernels compiled for the host, at sizes that say nothing of speed.
"""
