"""Speed, always beside a peer and a measured ceiling. Run with ``python -m benchmarks.<name>`` from the repository."""
