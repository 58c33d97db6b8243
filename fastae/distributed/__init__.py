"""Training by several processes, each with rows and a device of its own, that share their gradients.

::

    comm = fastae.distributed.nccl(rank, size, host="10.0.0.1")
    model = fastae.Autoencoder(32, backend=fastae.distributed.DataParallel(comm, device=f"cuda:{rank}"), random_state=0)
    model.fit(my_rows)              # the same call on every rank; batch_size is that of one rank

Marked unverified: NCCL's part was never run on two GPUs. The rest is tested with a communicator between threads.
"""

from .communicator import Communicator, nccl
from .parallel import DataParallel

__all__ = ["Communicator", "DataParallel", "nccl"]
