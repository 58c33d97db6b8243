"""How many threads to use, and the threadpoolctl controller of fastae's own pool.

Nothing computed by fastae depends on the number of threads; it only changes how long a call takes.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

MAX_THREADS = 256
"""Most threads that one call uses; the native pool has the same limit."""

_VARIABLES = ("FASTAE_NUM_THREADS", "OMP_NUM_THREADS")


def cpu_count() -> int:
    """Cores that this process may use: affinity, container quota and ``LOKY_MAX_CPU_COUNT`` are obeyed."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _cpu_count(affinity, os.environ.get("LOKY_MAX_CPU_COUNT"))


@functools.lru_cache(maxsize=8)
def _cpu_count(affinity: int, loky_limit: str | None) -> int:
    # Both arguments are part of joblib's answer, and so of the cache's key; asking joblib reads files.
    try:
        import joblib
    except ImportError:
        return affinity
    return int(joblib.cpu_count())


def resolve_threads(n_jobs: int | None = None, name: str = "n_jobs") -> int:
    """Number of threads for one call.

    ``n_jobs`` beats the environment variable ``FASTAE_NUM_THREADS``, which beats ``OMP_NUM_THREADS``, which beats the
    number of cores. A limit set through threadpoolctl caps the outcome, whichever it came from.

    Parameters
    ----------
    n_jobs : int or None
        Positive: that many, also above the number of cores. -1: every core, -2: all but one, and so on, at least 1.
        None: decided by the environment.
    name : str
        What the caller calls it, for errors.

    Returns
    -------
    int
        At least 1, at most ``MAX_THREADS``.

    Raises
    ------
    TypeError
        ``n_jobs`` is not an integer.
    ValueError
        ``n_jobs`` is 0, or an environment variable does not hold a positive integer.
    """
    if n_jobs is None:
        n_threads = _from_environment() or cpu_count()
    elif isinstance(n_jobs, bool) or not isinstance(n_jobs, Integral):
        raise TypeError(
            f"{name}={n_jobs!r} is {type(n_jobs).__name__}, wanted an integer or None; "
            "give a number of threads, or -1 for every core"
        )
    elif n_jobs == 0:
        raise ValueError(f"{name}=0 must be positive, negative or None; use {name}=1 for one thread, -1 for every core")
    elif n_jobs < 0:
        n_threads = max(1, cpu_count() + 1 + int(n_jobs))
    else:
        n_threads = int(n_jobs)
    limit = _native_limit()
    if limit > 0:
        n_threads = min(n_threads, limit)
    return min(n_threads, MAX_THREADS)


def _from_environment() -> int | None:
    for name in _VARIABLES:
        text = os.environ.get(name, "").strip()
        if not text:
            continue
        # OpenMP allows one number per level of nesting, "4,2"; the outermost is the one meant here.
        outermost = text.split(",")[0].strip() if name.startswith("OMP") else text
        if not outermost.isdecimal() or int(outermost) == 0:
            raise ValueError(f"{name}={text!r} must be a positive integer; correct it, or unset it to use every core")
        return int(outermost)
    return None


def _native_limit() -> int:
    """Limit of the native pool, 0 for none; a pool that is not loaded has none."""
    core = sys.modules.get("fastae._core")
    path = getattr(core, "__file__", None)
    return _library(path).fastae_get_num_threads() if path else 0


@functools.cache
def _library(path: str) -> ctypes.CDLL:
    return ctypes.CDLL(path)


class _Unlimited(int):
    """The number of threads in use while no limit is set.

    threadpoolctl restores a limit by passing back the very number it was told. This type tells such a restoration
    apart from a limit that happens to equal the number of cores, and would cap larger explicit numbers.
    """


@functools.cache
def register_threadpoolctl() -> bool:
    """Let ``threadpoolctl.threadpool_limits`` limit the native pool (``user_api="fastae"``).

    Called at the first use of an estimator; further calls cost nothing.

    Returns
    -------
    bool
        Whether threadpoolctl is installed.
    """
    try:
        import threadpoolctl
    except ImportError:
        return False

    class FastaeController(threadpoolctl.LibController):
        """Limit on the threads of fastae's native pool."""

        user_api = "fastae"
        internal_api = "fastae"
        filename_prefixes = ("_core",)
        # Many packages have a _core; these symbols make it ours.
        check_symbols = ("fastae_get_num_threads", "fastae_set_num_threads")

        def get_num_threads(self) -> int:
            limit = self.dynlib.fastae_get_num_threads()
            return limit if limit > 0 else _Unlimited(resolve_threads())

        def set_num_threads(self, num_threads: int) -> None:
            self.dynlib.fastae_set_num_threads(0 if isinstance(num_threads, _Unlimited) else int(num_threads))

        def get_version(self) -> str:
            from . import __version__

            return __version__

    threadpoolctl.register(FastaeController)
    return True


_blas_lock = threading.Lock()
_blas_users = 0
_blas_limits: Any = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keeps BLAS to one thread in the whole process while any caller is inside.

    For scipy's optimisers: a dot product that BLAS cuts over threads has other bits for another number of them.
    Callers are counted, so that fits in several threads don't restore each other's limits.
    """
    from threadpoolctl import threadpool_limits

    global _blas_users, _blas_limits
    with _blas_lock:
        if _blas_users == 0:
            _blas_limits = threadpool_limits(1, user_api="blas")
        _blas_users += 1
    try:
        yield
    finally:
        with _blas_lock:
            _blas_users -= 1
            if _blas_users == 0:
                _blas_limits.restore_original_limits()
