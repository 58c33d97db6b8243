"""The thread pool (through a C++ driver), the number of threads, and threadpoolctl."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastae import threads

ROOT = Path(__file__).resolve().parent.parent
CHECKS = [
    "every_task_once",
    "threads_run_together",
    "nested",
    "concurrent_callers",
    "sleep_and_wake",
    "fork_after_threads",
    "limit",
    "threads_refused",
    "idle_workers_sleep",
]
# A sanitizer preloaded into this process must not reach the compiler and the driver.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def build_driver(folder, *flags):
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler (g++, or the one that CXX names) to build the pool's driver")
    program = folder / "pool_driver"
    sources = [ROOT / "tests" / "pool_driver.cpp", ROOT / "csrc" / "threads.cpp"]
    command = [compiler, "-std=c++17", "-pthread", f"-I{ROOT / 'csrc'}", *flags, *sources, "-o", program]
    subprocess.run(command, check=True, env=ENVIRONMENT)
    return program


def run_driver(program, check, **variables):
    done = subprocess.run(
        [program, check], env=ENVIRONMENT | variables, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return build_driver(tmp_path_factory.mktemp("pool"), "-O2", "-Wall", "-Wextra", "-Werror")


@pytest.mark.parametrize("check", CHECKS)
def test_pool(driver, check):
    run_driver(driver, check)


@pytest.fixture(scope="module")
def sanitised_driver(tmp_path_factory):
    return build_driver(tmp_path_factory.mktemp("pool_tsan"), "-O1", "-g", "-fsanitize=thread")


# The tool cannot follow a child that starts threads after a fork, and needs address space and time of its own.
UNDER_TSAN = [name for name in CHECKS if name not in ("fork_after_threads", "threads_refused", "idle_workers_sleep")]


@pytest.mark.slow
@pytest.mark.parametrize("check", UNDER_TSAN)
def test_pool_under_thread_sanitizer(sanitised_driver, check):
    run_driver(sanitised_driver, check, TSAN_OPTIONS="exitcode=66")


@pytest.fixture
def clean_environment(monkeypatch):
    for name in ("FASTAE_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_n_jobs_beats_environment(clean_environment):
    assert threads.resolve_threads() == threads.cpu_count()
    clean_environment.setenv("OMP_NUM_THREADS", "5")
    assert threads.resolve_threads() == 5
    clean_environment.setenv("FASTAE_NUM_THREADS", "7")
    assert threads.resolve_threads() == 7
    assert threads.resolve_threads(3) == 3


def test_negative_n_jobs_counts_from_the_cores(clean_environment):
    cores = threads.cpu_count()
    assert threads.resolve_threads(-1) == cores
    assert threads.resolve_threads(-2) == max(1, cores - 1)
    assert threads.resolve_threads(-10_000) == 1


def test_threads_above_the_cores(clean_environment):
    assert threads.resolve_threads(threads.cpu_count() + 11) == threads.cpu_count() + 11
    assert threads.resolve_threads(100_000) == threads.MAX_THREADS


def test_nested_openmp_list(clean_environment):
    clean_environment.setenv("OMP_NUM_THREADS", " 4,2")
    assert threads.resolve_threads() == 4
    clean_environment.setenv("OMP_NUM_THREADS", "")
    assert threads.resolve_threads() == threads.cpu_count()


@pytest.mark.parametrize(
    "n_jobs, error", [(0, ValueError), (True, TypeError), (2.0, TypeError), ("2", TypeError), (float("nan"), TypeError)]
)
def test_bad_n_jobs(n_jobs, error):
    with pytest.raises(error, match="n_jobs="):
        threads.resolve_threads(n_jobs)


@pytest.mark.parametrize("name", ["FASTAE_NUM_THREADS", "OMP_NUM_THREADS"])
@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", ","])
def test_bad_environment(clean_environment, name, value):
    clean_environment.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name}='{value}' must be a positive integer"):
        threads.resolve_threads()
    assert threads.resolve_threads(2) == 2


def test_joblib_limit(clean_environment):
    clean_environment.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert threads.resolve_threads() == 1
    assert threads.resolve_threads(-1) == 1


@pytest.fixture
def threadpoolctl():
    pytest.importorskip("fastae._core", reason="the native extension is not built", exc_type=ImportError)
    module = pytest.importorskip("threadpoolctl")
    assert threads.register_threadpoolctl()
    return module


def test_threadpoolctl_limits_threads(threadpoolctl, clean_environment):
    with threadpoolctl.threadpool_limits(limits=1):
        assert threads.resolve_threads(8) == 1
        assert threads.resolve_threads() == 1
        with threadpoolctl.threadpool_limits(limits=3, user_api="fastae"):
            assert threads.resolve_threads(8) == 3
        assert threads.resolve_threads(8) == 1
    # No trace is left: a number above the cores is obeyed again.
    assert threads.resolve_threads(300) == threads.MAX_THREADS


def test_threadpoolctl_limit_equal_to_the_cores_is_a_limit(threadpoolctl, clean_environment):
    cores = threads.cpu_count()
    with threadpoolctl.threadpool_limits(limits=cores, user_api="fastae"):
        assert threads.resolve_threads(cores + 5) == cores
    assert threads.resolve_threads(cores + 5) == cores + 5


def test_threadpoolctl_info(threadpoolctl, clean_environment):
    import fastae

    assert threads.register_threadpoolctl()
    ours = [info for info in threadpoolctl.threadpool_info() if info["user_api"] == "fastae"]
    assert len(ours) == 1
    assert ours[0]["num_threads"] == threads.cpu_count()
    assert ours[0]["version"] == fastae.__version__
    assert Path(ours[0]["filepath"]).name.startswith("_core")


def test_threads_module_needs_no_extension():
    code = "import fastae.threads as t, sys; assert t.resolve_threads(3) == 3; assert 'joblib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
