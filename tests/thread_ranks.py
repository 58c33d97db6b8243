"""Ranks that are threads of one process: a communicator in the place of NCCL, rows and a model for them."""

import threading

import numpy as np

import fastae

SIZE, LOCAL = 2, 30
X = np.random.default_rng(0).standard_normal((240, 10)).astype(np.float32)


class Threads:
    """What the ranks share."""

    def __init__(self):
        self.barrier = threading.Barrier(SIZE, timeout=60)
        self.parts = [None] * SIZE


class ThreadCommunicator:
    """Ranks that are threads of one process; sums are made by each in the order of the ranks."""

    size = SIZE

    def __init__(self, rank, shared):
        self.rank, self.shared = rank, shared

    def _exchange(self, array):
        self.shared.parts[self.rank] = np.array(array)
        self.shared.barrier.wait()
        parts = list(self.shared.parts)
        self.shared.barrier.wait()
        return parts

    def sum(self, array):
        parts = self._exchange(array)
        array[...] = sum(parts[1:], parts[0])

    def broadcast(self, array, root=0):
        array[...] = self._exchange(array)[root]


def on_ranks(call):
    """What ``call(rank, communicator)`` gives on each rank; the first error is raised."""
    shared, results, errors = Threads(), [None] * SIZE, []

    def work(rank):
        try:
            results[rank] = call(rank, ThreadCommunicator(rank, shared))
        except BaseException as error:
            errors.append(error)
            shared.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(SIZE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
        raise error
    return results


def errors_of(call):
    """What each rank raises, None for nothing; a rank that is left waiting is an error of the test."""
    shared, errors = Threads(), [None] * SIZE

    def work(rank):
        try:
            call(rank, ThreadCommunicator(rank, shared))
        except BaseException as error:
            errors[rank] = error

    shared.barrier = threading.Barrier(SIZE, timeout=20)
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(SIZE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def of_rank(array, rank):
    """Rows of a rank, so that the ranks' batches together are the batches of the array."""
    return np.concatenate([array[i + rank * LOCAL : i + (rank + 1) * LOCAL] for i in range(0, len(X), SIZE * LOCAL)])


def rows_of(rank):
    return of_rank(X, rank)


def model(backend, batch, **options):
    options = {"hidden_layer_sizes": (8,), "max_iter": 3, "tol": 0, "shuffle": False, "random_state": 0} | options
    return fastae.Autoencoder(3, backend=backend, batch_size=batch, **options)
