"""Codes of a batch: products of chunks of latents, each followed by a filter; see csrc/cuda/encode.cuh."""

from __future__ import annotations

from ...plan import schema
from .binder import Binder, Grid, ceil_div, over, over_cells, over_rows
from .codes import ONE_BLOCK
from .dense import tile
from .lt import Matrix, Product

PRODUCTS = 1 << 24  # of a chunk: latents times rows of the batch
LATENTS = 256  # a chunk is a multiple of so many
MOST_CERTIFIED = 1 << 18  # Bounds::possible
GATHERED = 1 << 23  # numbers of the weights of a subset's chunk
SELECT_THREADS, STRIPS = 256, 4  # kSelectThreads, kStrips of select.cuh
DIGIT, BINS = 11, 1 << 11  # kDigit, kBins of batch_topk.cuh


class Memory:
    """Bytes of work memory, array by array on 256 bytes, as the kernels take them."""

    def __init__(self) -> None:
        self.bytes = 0

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


def chunk_of(m: int, n: int, most: int) -> int:
    """Latents of a chunk, so that m numbers for each are no more than `most`."""
    return min(n, max(LATENTS, most // max(m, 1) // LATENTS * LATENTS))


def encode(b: Binder, op) -> None:
    if certifies(b, op):
        certified(b, op)
        return
    n, p = b.shape("w")
    chunk = chunk_of(b.m, n, PRODUCTS)
    if b.has("subset"):
        chunk = chunk_of(p, chunk, GATHERED)
    rows = blocks_of_rows(b.m, chunk)
    ragged = schema.CODE_KINDS[op.ints["kind"]] == "threshold"
    room = 1 if ragged else min(n, 2 * op.ints["k"] + 32 + rows[1][0] * STRIPS)
    memory = lists(b, chunk, room)
    subset = memory.take(chunk * p, b.plan.dtype.itemsize) if b.has("subset") else 0
    b.launch("encode_begin", over_rows(b.m), work_bytes=memory.bytes, extra=(0, chunk, room))
    for first in range(0, n, chunk):
        some = min(chunk, n - first)
        if subset:
            b.launch("encode_gather", over_cells(some, p), extra=(first, chunk, room))
        chunk_product(b, some, (first, chunk, room, subset))
        b.launch("encode_filter", rows, extra=(first, chunk, room))
    b.launch("encode_finish", rows, extra=(0, chunk, room))


def lists(b: Binder, chunk: int, room: int) -> Memory:
    """Products of a chunk, the rows' lists and their limits: the arrays of Encode."""
    memory, item = Memory(), b.plan.dtype.itemsize
    for count, size in ((b.m * chunk, item), (b.m * room, item), (b.m * room, 4), (b.m, 4), (b.m, item)):
        memory.take(count, size)
    return memory


def chunk_product(b: Binder, columns: int, extra: tuple[int, ...]) -> None:
    """The float32 (or float64) chains of a chunk of latents."""
    name, threads = tile(b, b.m, columns)
    b.launch(f"chunk_product_{name}", threads, extra=extra)


# ---- candidates by products in bfloat16, with proven bounds: csrc/cuda/certify.cuh ---


def certifies(b: Binder, op) -> bool:
    """Whether candidates come from products in bfloat16. The results are the same bits."""
    n, p = b.shape("w")
    path = schema.ENCODE_PATHS[op.ints["path"]]
    if b.plan.dtype.itemsize != 4 or b.has("subset") or p >= MOST_CERTIFIED or path == "float32":
        return False
    ragged = schema.CODE_KINDS[op.ints["kind"]] == "threshold"
    return path == "bfloat16" or (b.cublas and p >= 64 and n >= 1024 and (ragged or n >= 16 * op.ints["k"]))


def certified(b: Binder, op) -> None:
    n, p = b.shape("w")
    chunk, depth = chunk_of(b.m, n, PRODUCTS), ceil_div(p, 64) * 64
    rows = blocks_of_rows(b.m, chunk)
    ragged, packed = schema.CODE_KINDS[op.ints["kind"]] == "threshold", b.has("packed")
    room = min(chunk, rows[1][0] * STRIPS) if ragged else min(n, 4 * op.ints["k"] + 128 + rows[1][0] * STRIPS)
    memory = lists(b, chunk, room)
    for count, size in ((b.m * room, 4), (b.m, 4), (b.m, 4)):
        memory.take(count, size)
    x = memory.take(b.m * depth, 2)
    memory.take(b.m, 4)
    memory.take(1, 4)
    if not ragged:
        memory.take(b.m * p, 4)
    w = 0 if packed else memory.take(ceil_div(chunk, 64) * 64 * (2 * depth + 8), 1)
    common = (chunk, room, int(packed))
    b.launch("certify_begin", over_rows(b.m), work_bytes=memory.bytes, extra=(0, *common))
    for first in range(0, n, chunk):
        extra, some = (first, *common), min(chunk, n - first)
        if not packed:
            b.launch("certify_pack", over_rows(some), extra=extra)
        if b.cublas:
            at = b.address("packed") + 2 * first * depth if packed else b.work + w
            product = Product("bfloat16", Matrix(b.work + x, depth), Matrix(at, depth, True), Matrix(b.work, chunk),
                              b.m, some, depth)  # fmt: skip
            b.launches.append(product)
        else:
            b.launch("certify_product", over_cells(b.m, some), extra=extra)
        b.launch("certify_ragged" if ragged else "certify_filter", rows, extra=extra)
    if ragged:
        b.launch("encode_finish", rows, extra=(0, chunk, room))
        return
    b.launch("certify_finish", rows, extra=(0, *common))
    b.launch("fallback_rows", ((1, 1, 1), (SELECT_THREADS, 1, 1)), extra=(0, *common))
    b.launch("fallback_gather", over_cells(b.m, p), extra=(0, *common))
    few = ((4 * b.n_multiprocessors, 1, 1), rows[1])
    for i in range(ceil_div(n, chunk)):
        b.launch("fallback_product", ((few[0][0], 1, 1), (256, 1, 1)), extra=(i, *common))
        b.launch("fallback_filter", few, extra=(i, *common))
    b.launch("fallback_finish", few, extra=(0, *common))


def pack_encoder(b: Binder, op) -> None:
    n, p = b.shape("w")
    if b.plan.dtype.itemsize == 4 and p < MOST_CERTIFIED:
        b.launch("pack_encoder", over_rows(n))


def batch_topk(b: Binder, op) -> None:
    n = b.shape("w")[0]
    item = b.plan.dtype.itemsize
    chunk = chunk_of(b.m, n, PRODUCTS)
    rows = blocks_of_rows(b.m, chunk)
    room = min(n, 2 * b.shape("val")[1] + 64 + rows[1][0] * STRIPS)
    memory = Memory()
    sizes = ((b.m * chunk, item), (1, 64), (BINS, 8), (b.m * room, item), (b.m * room, 4), (b.m, 4), (b.m, 8))
    for count, size in sizes:
        memory.take(count, size)
    common = (0, chunk, room)
    b.launch("batch_begin", over_rows(b.m), work_bytes=memory.bytes, extra=common)
    for first in range(0, n, chunk):
        chunk_product(b, min(chunk, n - first), (first, chunk, room))
        b.launch("batch_filter", rows, extra=(first, chunk, room))
        b.launch("batch_raise", ONE_BLOCK, extra=common)
    lists = blocks_of_rows(b.m, room)
    for digit in range(ceil_div(8 * item - 1, DIGIT)):
        b.launch("batch_clear", over(BINS), extra=common)
        b.launch("batch_count", lists, extra=(*common, digit))
        b.launch("batch_pick", ONE_BLOCK, extra=(*common, digit))
    b.launch("batch_ties", lists, extra=common)
    b.launch("batch_ties_before", ((1, 1, 1), (1024 if b.m > SELECT_THREADS else 32, 1, 1)), extra=common)
    b.launch("batch_emit", lists, extra=common)
    b.launch("batch_finish", ((1, 1, 1), (32, 1, 1)), extra=common)


def narrow(b: Binder, op) -> None:
    b.launch("narrow", blocks_of_rows(b.m, b.shape("val")[1]))
