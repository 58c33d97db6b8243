"""Codes of a batch: products of chunks of latents, each followed by a filter; see csrc/cuda/encode.cuh."""

from __future__ import annotations

from typing import Any

from ...plan import schema
from .binder import Binder
from .codes import ONE_BLOCK
from .dense import tile
from .launches import Grid, ceil_div, over, over_cells, over_rows
from .lt import Matrix, Product

PRODUCTS = 1 << 24  # of a chunk: latents times rows of the batch
LATENTS = 256  # a chunk is a multiple of so many
MOST_CERTIFIED = 1 << 18  # Bounds::possible
GATHERED = 1 << 23  # numbers of the weights of a subset's chunk
ROUNDED = 1 << 26  # of those of a chunk that are rounded for it
SELECT_THREADS, STRIPS = 256, 4  # kSelectThreads, kStrips of select.cuh
STREAM = 128 * STRIPS  # kStream of stream.cuh
FINISH_THREADS = 128  # kFinishThreads of certify.cuh
DIGIT, BINS = 11, 1 << 11  # kDigit, kBins of batch_topk.cuh


class Memory:
    """Bytes of work memory, array by array on 256 bytes, as the kernels take them."""

    def __init__(self, start: int = 0):
        self.bytes = start

    def take(self, n: int, item: int) -> int:
        """Offset of n elements."""
        here = self.bytes
        self.bytes += ceil_div(n * item, 256) * 256
        return here


def blocks_of_rows(rows: int, columns: int) -> tuple[Grid, Grid]:
    """Grid and block for a block of threads a row that goes over so many columns."""
    x = 32
    while x < SELECT_THREADS and x * STRIPS < columns:
        x *= 2
    return (max(1, min(rows, 1 << 20)), 1, 1), (x, 1, 1)


def by_warps(rows: int) -> tuple[Grid, Grid]:
    """Grid and block for a warp a row."""
    return (max(1, ceil_div(32 * rows, SELECT_THREADS)), 1, 1), (SELECT_THREADS, 1, 1)


def chunk_of(m: int, n: int, most: int) -> int:
    """Latents of a chunk, so that m numbers for each are no more than `most`."""
    return min(n, max(LATENTS, most // max(m, 1) // LATENTS * LATENTS))


def chunk_of_batch(b: Binder) -> int:
    """Latents of a chunk of the op at hand: fewer where a copy of their weights would take the memory, not products."""
    n, p = b.shape("w")
    chunk = chunk_of(b.m, n, PRODUCTS)
    return chunk if b.has("packed") else chunk_of(p, chunk, ROUNDED)


def encode(b: Binder, op) -> None:
    if certifies(b, op):
        certified(b, op)
        return
    n, p = b.shape("w")
    chunk = chunk_of_batch(b)
    if b.has("subset"):
        chunk = chunk_of(p, chunk, GATHERED)
    rows, k = blocks_of_rows(b.m, chunk), op.ints["k"]
    ragged = schema.CODE_KINDS[op.ints["kind"]] == "threshold"
    streamed = op.ints["bf16"] and not ragged and not b.has("subset")
    listed = most(k) + STREAM if streamed else 2 * k + 32 + rows[1][0] * STRIPS
    room = 1 if ragged else min(n, listed)
    memory = lists(b, chunk, room)
    subset = memory.take(chunk * p, b.plan.dtype.itemsize) if b.has("subset") else 0
    products = Products(b, memory, chunk, subset=subset)
    b.launch("encode_begin", over_rows(b.m), work_bytes=memory.bytes, extra=(0, chunk, room))
    products.begin()
    for first in range(0, n, chunk):
        if subset:
            b.launch("encode_gather", few(b, over_cells(min(chunk, n - first), p)), extra=(first, chunk, room))
        products(first)
        if streamed:
            b.launch("stream_filter", by_warps(b.m), extra=(first, chunk, room))
        else:
            b.launch("encode_filter", few(b, rows) if subset else rows, extra=(first, chunk, room))
    b.launch("encode_finish", rows, extra=(0, chunk, room))


def few(b: Binder, threads: tuple[Grid, Grid]) -> tuple[Grid, Grid]:
    """As many blocks as run at once: for what often has nothing to do, so that beginning costs most."""
    (x, y, _), block = threads
    return (max(1, min(x, 8 * b.n_multiprocessors // y)), y, 1), block


def lists(b: Binder, chunk: int, room: int, start: int = 0) -> Memory:
    """Products of a chunk, the rows' lists and their limits: the arrays of Encode, from ``start`` on."""
    memory, item = Memory(start), b.plan.dtype.itemsize
    for count, size in ((b.m * chunk, item), (b.m * room, item), (b.m * room, 4), (b.m, 4), (b.m, item)):
        memory.take(count, size)
    return memory


class Products:
    """Products of the batch with chunks of latents, to ``start`` in the work memory.

    Where they are to be in bfloat16 and cuBLASLt makes them, x is rounded at the beginning and each chunk of w before
    its product, which then finds it in the device's cache. Our own kernel rounds what it reads; a subset, whose rows of
    w lie at ``subset``, is left to it, as its products end where the subset does.
    """

    def __init__(self, b: Binder, memory: Memory, chunk: int, start: int = 0, subset: int = 0):
        self.b, self.chunk, self.start, self.subset = b, chunk, start, subset
        self.rounded = b.op.ints["bf16"]  # type: ignore[union-attr]
        self.by_cublas = bool(self.rounded and b.cublas and not b.has("subset"))
        if self.by_cublas:
            self.x, self.w = (b.locate(b.buffer(slot)) for slot in ("x", "w"))  # with the distance of rows
            self.packed = b.has("packed")
            self.x16 = b.work + memory.take(b.m * self.x[1], 2)
            self.w16 = b.address("packed") if self.packed else b.work + memory.take(chunk * self.w[1], 2)

    def begin(self) -> None:
        if self.by_cublas:
            self.b.round(*self.x, self.b.m, self.b.shape("w")[1], self.x16)

    def __call__(self, first: int) -> None:
        """The chunk from latent ``first`` on."""
        b, (n, p) = self.b, self.b.shape("w")
        some = min(self.chunk, n - first)
        if not self.by_cublas:
            name, threads = tile(b, b.m, some)
            b.launch(f"chunk_product_{name}", threads, work=b.work + self.start,
                     extra=(first, self.chunk, self.rounded, self.subset))  # fmt: skip
            return
        (w, ld), w16 = self.w, self.w16
        if self.packed:
            w16 += 2 * first * ld
        else:
            b.round(w + 4 * first * ld, ld, some, p, w16)
        left, out = Matrix(self.x16, self.x[1]), Matrix(b.work + self.start, self.chunk)
        b.launches.append(Product("bfloat16", left, Matrix(w16, ld, True), out, b.m, some, p))


# ---- candidates by products in float16, with proven bounds: csrc/cuda/certify.cuh ---


def certifies(b: Binder, op) -> bool:
    """Whether candidates come from products in float16. The results are the same bits."""
    n, p = b.shape("w")
    path = schema.ENCODE_PATHS[op.ints["path"]]
    if b.plan.dtype.itemsize != 4 or b.has("subset") or p >= MOST_CERTIFIED or path == "float32" or op.ints["bf16"]:
        return False
    ragged = schema.CODE_KINDS[op.ints["kind"]] == "threshold"
    return path == "bfloat16" or (b.cublas and p >= 64 and n >= 1024 and (ragged or n >= 16 * op.ints["k"]))


def most(k: int) -> int:
    """Entries of a list before it is cut, as in stream.cuh: a few times more than bounds leave undecided."""
    return 8 * k + 512


class Certified:
    """The launches that an op by products in float16 has in common: of an encode over memory from ``start`` on."""

    def __init__(self, b: Binder, room: int, start: int = 0, packed: bool = False, ragged: bool = False):
        n, p = b.shape("w")
        self.b, self.n, self.p, self.start, self.packed = b, n, p, start, packed
        self.chunk, self.depth = chunk_of_batch(b), ceil_div(p, 64) * 64
        self.rows = blocks_of_rows(b.m, self.chunk)
        self.finishing = (self.rows[0], (FINISH_THREADS, 1, 1))
        self.common = (self.chunk, room, int(packed))
        memory = lists(b, self.chunk, room, start)
        for count, size in ((b.m * room, 4), (b.m, 4), (b.m, 4), (b.m, 4)):
            memory.take(count, size)
        self.x = memory.take(b.m * self.depth, 2)
        memory.take(b.m, 4)
        memory.take(1, 4)
        if not ragged:
            memory.take(b.m * p, 4)
        self.w = 0 if packed else memory.take(ceil_div(self.chunk, 64) * 64 * (2 * self.depth + 12), 1)
        self.bytes = memory.bytes

    def launch(self, kernel: str, threads: tuple[Grid, Grid], first: int = 0) -> None:
        self.b.launch(kernel, threads, work=self.b.work + self.start, work_bytes=self.bytes,
                      extra=(first, *self.common))  # fmt: skip

    def products(self, first: int) -> None:
        """The rounded products of the chunk from latent ``first`` on."""
        b, some = self.b, min(self.chunk, self.n - first)
        if not self.packed:
            self.launch("certify_pack", by_warps(some), first)
        if not b.cublas:
            self.launch("certify_product", over_cells(b.m, some), first)
            return
        at = b.address("packed") + 2 * first * self.depth if self.packed else b.work + self.w
        left, right = Matrix(b.work + self.x, self.depth), Matrix(at, self.depth, True)
        out = Matrix(b.work + self.start, self.chunk)
        b.launches.append(Product("float16", left, right, out, b.m, some, self.depth))

    def fallback(self, kernel: str) -> None:
        """The float32 way of the rows that need it; kernel : which filters their products"""
        b = self.b
        self.launch("fallback_rows", ((1, 1, 1), (SELECT_THREADS, 1, 1)))
        self.launch("fallback_gather", over_cells(b.m, self.p))
        few = (4 * b.n_multiprocessors, 1, 1)
        for i in range(ceil_div(self.n, self.chunk)):
            self.launch("fallback_product", (few, (256, 1, 1)), i)
            self.launch(kernel, (few, self.rows[1]), i)


def certified(b: Binder, op) -> None:
    n = b.shape("w")[0]
    chunk = chunk_of_batch(b)
    threads = blocks_of_rows(b.m, chunk)[1][0]
    ragged = schema.CODE_KINDS[op.ints["kind"]] == "threshold"
    room = threads * STRIPS if ragged else min(n, most(op.ints["k"]) + threads * STRIPS)
    c = Certified(b, min(chunk, room) if ragged else room, 0, b.has("packed"), ragged)
    c.launch("certify_begin", by_warps(b.m))
    for first in range(0, n, c.chunk):
        c.products(first)
        c.launch(*("certify_ragged", c.rows) if ragged else ("certify_filter", by_warps(b.m)), first)
    if ragged:
        c.launch("encode_finish", c.rows)
        return
    c.launch("certify_finish", c.finishing)
    c.fallback("fallback_filter")
    c.launch("fallback_finish", ((4 * b.n_multiprocessors, 1, 1), c.rows[1]))


def pack_encoder(b: Binder, op) -> None:
    n, p = b.shape("w")
    if op.ints["bf16"]:
        if b.cublas:
            b.round(*b.locate(b.buffer("w")), n, p, b.address("packed"))
    elif b.plan.dtype.itemsize == 4 and p < MOST_CERTIFIED:
        b.launch("pack_encoder", by_warps(n))


def batch_topk(b: Binder, op) -> None:
    n, p = b.shape("w")
    capacity = b.shape("val")[1]
    chunk = chunk_of_batch(b)
    rows = blocks_of_rows(b.m, chunk)
    head = Memory()
    for count, size in ((1, 64), (BINS, 8), (b.m, 8)):
        head.take(count, size)
    certified = b.cublas and b.plan.dtype.itemsize == 4 and not op.ints["bf16"]
    if certified and 64 <= p < MOST_CERTIFIED and n >= max(1024, 16 * op.ints["k"]):
        room = min(n, most(capacity) + rows[1][0] * STRIPS)
        common = (0, chunk, room)
        certified_batch(b, op, Certified(b, room, head.bytes), common)
    else:
        room = min(n, 2 * capacity + 64 + rows[1][0] * STRIPS)
        common = (0, chunk, room)
        memory = lists(b, chunk, room, head.bytes)
        products = Products(b, memory, chunk, head.bytes)
        b.launch("batch_begin", over_rows(b.m), work_bytes=memory.bytes, extra=common)
        products.begin()
        for first in range(0, n, chunk):
            products(first)
            b.launch("batch_filter", rows, extra=(first, chunk, room))
            b.launch("batch_raise", ONE_BLOCK, extra=common)
    select_in_batch(b, common)


def certified_batch(b: Binder, op, c: Certified, common: tuple[int, int, int]) -> None:
    """Lists of what may be an entry, with float32's numbers: csrc/cuda/certified_batch.cuh."""
    b.launch("batch_begin", over_rows(b.m), work_bytes=c.bytes, extra=common)
    meanwhile: dict[str, Any] = {name: op.slots.get(name) for name in ("x", "w", "b", "val", "idx", "count")}
    meanwhile |= {"k": b.shape("val")[1], "k_scalar": -1, "overflow": -1}  # of topk, the first of CODE_KINDS
    for first in (-1, *range(0, c.n, c.chunk)):
        with b.as_op("encode", **meanwhile):
            if first < 0:
                c.launch("certify_begin", by_warps(b.m))
                continue
            c.products(first)
            c.launch("certify_batch_filter", c.rows, first)
        b.launch("batch_raise", ONE_BLOCK, extra=common)
    with b.as_op("encode", **meanwhile):
        c.launch("certify_batch_finish", c.finishing)
        c.fallback("fallback_batch_filter")


def select_in_batch(b: Binder, common: tuple[int, int, int]) -> None:
    """The entries of the batch among the rows' lists."""
    lists = blocks_of_rows(b.m, common[2])
    for digit in range(ceil_div(8 * b.plan.dtype.itemsize - 1, DIGIT)):
        b.launch("batch_clear", over(BINS), extra=common)
        b.launch("batch_count", lists, extra=(*common, digit))
        b.launch("batch_pick", ONE_BLOCK, extra=(*common, digit))
    b.launch("batch_ties", lists, extra=common)
    b.launch("batch_ties_before", ((1, 1, 1), (1024 if b.m > SELECT_THREADS else 32, 1, 1)), extra=common)
    b.launch("batch_emit", lists, extra=common)
    b.launch("batch_finish", ((1, 1, 1), (32, 1, 1)), extra=common)


def narrow(b: Binder, op) -> None:
    b.launch("narrow", blocks_of_rows(b.m, b.shape("val")[1]))
