"""As much of CuPy as the CUDA backend's driver uses, over the device kernels compiled for the host.

Nothing runs when it is asked for: work waits in its stream's queue until something waits for it, and which stream goes
on is drawn by chance, so that an order that nobody asked for shows. Memory comes from pools as CuPy's, an arena for
each stream, and is poisoned in the stream's order when it is used again. While a stream captures, what CUDA refuses is
an error here too: waiting, allocating, loading, copies of memory that is not pinned.
"""

from __future__ import annotations

import ctypes
import random
import threading
from collections import defaultdict, deque
from types import SimpleNamespace
from typing import ClassVar

import cuda_host
import numpy as np

H2D, D2H, D2D = 1, 2, 3
POISON = 0xA5


class CUDARuntimeError(RuntimeError):
    pass


class CUDADriverError(RuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    pass


class Block:
    """Memory that goes back where it came from when the last array over it has gone."""

    def __init__(self, owner, back):
        self.owner, self.back, self.__array_interface__ = owner, back, owner.__array_interface__

    def __del__(self):
        self.back()


class Array(np.ndarray):
    """An array on the device."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)

    @property
    def __cuda_array_interface__(self):
        return self.__array_interface__

    @property
    def device(self):
        return SimpleNamespace(id=0)

    def __getitem__(self, key):
        if isinstance(key, Array):
            key = key.get()
        return super().__getitem__(key)

    def get(self):
        CUPY.cuda.get_current_stream().synchronize()
        return np.array(self)


class Capture:
    """A graph in the making: each op with those before it, and each stream that takes part with its last ones."""

    def __init__(self, origin):
        self.nodes, self.last, self.thread = [], {origin: frozenset()}, threading.get_ident()

    def push(self, stream, op):
        self.nodes.append((op, self.last[stream]))
        self.last[stream] = frozenset((len(self.nodes) - 1,))

    def before(self, last):
        """All ops that some come after, with these."""
        found, left = set(), list(last)
        while left:
            node = left.pop()
            if node not in found:
                found.add(node)
                left += self.nodes[node][1]
        return found


class Stream:
    def __init__(self, non_blocking=False, *, null=False):
        self.queue, self.capture, self.device_id = deque(), None, 0
        self.free = defaultdict(list)
        self.ptr = 0 if null else id(self)
        STREAMS[self.ptr] = self

    def push(self, op, ready=lambda: True):
        if self.capture is None:
            self.queue.append((op, ready))
        else:
            self.capture.push(self, op)

    def synchronize(self):
        refuse("waiting", self)
        work(lambda: not self.queue, self)

    def wait_event(self, event):
        wanted = event.recorded
        if event.capture is not None:  # the stream takes part in that from now on
            assert self.capture in (None, event.capture)
            self.capture = event.capture
            self.capture.last[self] = self.capture.last.get(self, frozenset()) | event.last
        else:
            refuse("waiting for what is no part of it", self)
            self.push(lambda: None, lambda: event.done >= wanted)

    def begin_capture(self, mode=None):
        assert self.ptr and self.capture is None
        self.capture = Capture(self)

    def end_capture(self):
        capture = self.capture
        for stream in capture.last:
            stream.capture = None
        if any(op is None for op, _ in capture.nodes):
            raise CUDARuntimeError("cudaErrorStreamCaptureInvalidated")
        mine = capture.before(capture.last[self])
        if any(not mine.issuperset(last) for last in capture.last.values()):
            raise CUDARuntimeError("cudaErrorStreamCaptureUnjoined")
        return Graph(capture.nodes)

    def __enter__(self):
        CURRENT.stack = [*getattr(CURRENT, "stack", []), self]
        return self

    def __exit__(self, *_):
        CURRENT.stack.pop()


class Graph:
    """Ops in any order that leaves each behind those before it."""

    launched = 0

    def __init__(self, nodes):
        self.nodes = nodes

    def upload(self, stream):
        refuse("uploading", stream)

    def launch(self, stream):
        Graph.launched += 1
        done = set()
        while len(done) < len(self.nodes):
            chosen = DRAW.choice([i for i, (_, before) in enumerate(self.nodes) if i not in done and before <= done])
            done.add(chosen)
            stream.push(self.nodes[chosen][0])


class Event:
    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.recorded, self.done, self.stream = 0, 0, None
        self.capture = None

    def record(self, stream=None):
        stream = stream or CUPY.cuda.get_current_stream()
        self.recorded, self.stream, self.capture = self.recorded + 1, stream, stream.capture
        mine = self.recorded
        if stream.capture is not None:
            self.last = stream.capture.last[stream]
        else:
            stream.push(lambda: setattr(self, "done", max(self.done, mine)))

    def synchronize(self):
        wanted = self.recorded
        work(lambda: self.done >= wanted, self.stream)


STREAMS: dict[int, Stream] = {}
CURRENT = threading.local()
LOCK = threading.RLock()
DRAW = random.Random(0)
ORDER = None  # that a test asks for: of `work`
NULL = Stream(null=True)
PINNED: dict[int, int] = {}  # address → bytes
DEVICE: dict[int, int] = {}
PENDING_FREE: list = []


def work(done, wanted):
    """Runs what waits until ``done()``, which depends on the stream ``wanted``.

    By chance nothing else is run unless it has to be, or everything else before, or in any order.
    """
    with LOCK:
        order = ORDER or DRAW.choice(("wanted first", "wanted last", "any"))
        while not done():
            heads = [s for s in list(STREAMS.values()) if s.queue and s.queue[0][1]()]
            assert heads, "streams wait for each other"
            others = [s for s in heads if s is not wanted]
            if order == "wanted first" and wanted in heads:
                chosen = wanted
            else:
                chosen = DRAW.choice(others if order == "wanted last" and others else heads)
            op, _ = chosen.queue.popleft()
            op()


def refuse(what, stream=None):
    """Ends a capture in which something happened that CUDA does not allow: to a stream, or from the same thread."""
    for other in [stream] if stream is not None else list(STREAMS.values()):
        if other.capture is not None and (stream is not None or other.capture.thread == threading.get_ident()):
            other.capture.push(other, None)
            raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {what} during a capture")


def inside(blocks, address, size):
    return any(start <= address and address + size <= start + n for start, n in list(blocks.items()))


def empty(shape, dtype=np.float32):
    """Memory of the current stream's arena."""
    refuse("allocating")
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    size = -(-max(count * dtype.itemsize, 1) // 512) * 512
    if size > RUNTIME.largest:
        raise OutOfMemoryError(f"{size} bytes")
    stream = CUPY.cuda.get_current_stream()
    owner = stream.free[size].pop() if stream.free[size] else np.full(size, POISON, np.uint8)
    DEVICE[owner.ctypes.data] = size
    stream.queue.append((lambda: owner.fill(POISON), lambda: True))  # no work of CUDA's, so no part of a capture
    raw = np.asarray(Block(owner, lambda: stream.free[size].append(owner)))
    return raw[: count * dtype.itemsize].view(dtype).reshape(shape).view(Array)


def asarray(value, dtype=None):
    if isinstance(value, Array):
        return value
    value = np.asarray(value, dtype)
    out = empty(value.shape, value.dtype)
    copied = np.array(value)
    CUPY.cuda.get_current_stream().push(lambda: np.copyto(np.asarray(out), copied))
    return out


def alloc_pinned_memory(n):
    owner = np.full(-(-n // 512) * 512, POISON, np.uint8)
    PINNED[owner.ctypes.data] = owner.nbytes
    PENDING_FREE.append(owner)  # never given to anybody else: what still writes there does no harm to others

    address = owner.ctypes.data
    return np.asarray(Block(owner, lambda: PINNED.pop(address)))


class Runtime:
    CUDARuntimeError = CUDARuntimeError
    memcpyHostToDevice, memcpyDeviceToHost, memcpyDeviceToDevice = H2D, D2H, D2D
    largest = 1 << 40  # bytes that can be had in one piece
    free = 1 << 40

    def getDeviceCount(self):
        return 1

    def getDevice(self):
        return 0

    def runtimeGetVersion(self):
        return 13_000

    cudaDevAttrMultiProcessorCount = 16

    def deviceGetAttribute(self, attribute, device):
        return {16: 4}[attribute]

    def memGetInfo(self):
        return self.free, 1 << 40

    def memcpyAsync(self, to, start, size, kind, stream):
        stream, pinned = STREAMS[stream], []
        for address, there in ((to, kind != D2H), (start, kind != H2D)):
            if there:
                assert inside(DEVICE, address, size), "a copy beyond the device's memory"
            elif inside(PINNED, address, size):
                pinned.append(address)
            elif stream.capture is not None:
                refuse("a copy of pageable memory", stream)

        def copy():
            assert all(inside(PINNED, address, size) for address in pinned), "pinned memory went while a copy used it"
            ctypes.memmove(to, start, size)

        stream.push(copy)

    def memsetAsync(self, address, value, size, stream):
        assert inside(DEVICE, address, size)
        STREAMS[stream].push(lambda: ctypes.memset(address, value, size))


RUNTIME = Runtime()


class Module:
    """All kernels for a real type, whose name stands for their code."""

    def load(self, code):
        refuse("loading a module")
        assert isinstance(code, bytes)
        self.real = code.decode()

    def get_function(self, name):
        return Function(self.real, name)


class Function:
    def __init__(self, real, name):
        self.real, self.name = real, name

    def __call__(self, grid, block, args, shared_mem=0, stream=None, enable_cooperative_groups=False):
        assert isinstance(grid, tuple) and isinstance(block, tuple) and len(args) == 1 and args[0].size == 1
        assert grid[1] < 65536 and grid[2] < 65536 and np.prod(block) <= 1024 and shared_mem <= 48 << 10
        assert args[0].nbytes <= 4096
        record = args[0].copy()  # parameters are copied at the launch
        (stream or CUPY.cuda.get_current_stream()).push(lambda: self._run(grid, block, shared_mem, record))

    def _run(self, grid, block, shared_mem, record):
        shim = cuda_host.library(self.real)
        triple = ctypes.c_uint * 3
        with cuda_host.ONE_AT_A_TIME:
            error = shim.fastae_host_launch(
                ctypes.cast(getattr(shim, self.name), ctypes.c_void_p), triple(*grid), triple(*block),
                ctypes.c_size_t(shared_mem), ctypes.c_void_p(record.ctypes.data), ctypes.c_uint64(DRAW.getrandbits(60)),
            )  # fmt: skip
        assert not error, f"{self.name}: {error}"


class Device:
    compute_capability = "90"

    def __init__(self, number):
        self.id = number

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Products:
    """In the place of cuBLASLt: NumPy's products, in the stream's order."""

    refuses = False  # what follows a product, as a library may for some shapes

    using: ClassVar[dict] = {}  # workspace → its stream

    def knows(self, product):
        return not (self.refuses and product.epilogue)

    def __call__(self, product, stream, workspace):
        assert inside(DEVICE, workspace, 1)
        assert self.using.setdefault(workspace, stream) == stream, "a workspace for products of two streams"
        STREAMS[stream].push(lambda: cuda_host.multiply(product))


class Cupy:
    """The module."""

    ndarray = Array
    empty, asarray = staticmethod(empty), staticmethod(asarray)
    cuda = SimpleNamespace(
        runtime=RUNTIME, Device=Device, Stream=Stream, Event=Event, alloc_pinned_memory=alloc_pinned_memory,
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError), function=SimpleNamespace(Module=Module),
        driver=SimpleNamespace(CUDADriverError=CUDADriverError),
        get_current_stream=lambda *_: (getattr(CURRENT, "stack", None) or [NULL])[-1],
    )  # fmt: skip

    def get_default_memory_pool(self):
        return SimpleNamespace(free_bytes=lambda: 0)

    def ascontiguousarray(self, array, dtype=None):
        array = asarray(array)
        return array if array.flags.c_contiguous and dtype in (None, array.dtype) else asarray(array.get(), dtype)

    def take(self, array, indices, axis=None):
        return np.take(array.get(), indices.get(), axis).view(Array)

    def may_share_memory(self, a, b):
        return np.may_share_memory(a, b)


CUPY = Cupy()
