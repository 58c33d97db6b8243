"""Codes of a batch: products of chunks of latents, each followed by a filter; see csrc/cuda/encode.cuh."""

from __future__ import annotations

from ...plan import schema
from .binder import Binder, Grid, ceil_div, over, over_cells, over_rows
from .codes import ONE_BLOCK
from .dense import tile

PRODUCTS = 1 << 24  # of a chunk: latents times rows of the batch
LATENTS = 256  # a chunk is a multiple of so many
GATHERED = 1 << 23  # numbers of the weights of a subset's chunk
SELECT_THREADS, STRIPS = 256, 8  # kSelectThreads, kStrips of select.cuh
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


def chunk_of(m: int, n: int, most: int = PRODUCTS) -> int:
    """Latents of a chunk."""
    return min(n, max(LATENTS, most // max(m, 1) // LATENTS * LATENTS))


def room_of(k: int, n: int, threads: int) -> int:
    """Entries of a row's list: a full one, and what one look at a chunk may add."""
    return min(n, 2 * k + 32 + threads * STRIPS)


def encode(b: Binder, op) -> None:
    n, p = b.shape("w")
    item = b.plan.dtype.itemsize
    chunk = chunk_of(b.m, n)
    if b.has("subset"):
        chunk = chunk_of(p, chunk, GATHERED)
    rows = blocks_of_rows(b.m, chunk)
    ragged = schema.CODE_KINDS[op.ints["kind"]] == "threshold"
    room = 1 if ragged else room_of(min(op.ints["k"], n), n, rows[1][0])
    memory = Memory()
    for count, size in ((b.m * chunk, item), (b.m * room, item), (b.m * room, 4), (b.m, 4), (b.m, item)):
        memory.take(count, size)
    if b.has("subset"):
        memory.take(chunk * p, item)
    work = memory.bytes
    b.launch("encode_begin", over_rows(b.m), work_bytes=work, extra=(0, chunk, room))
    for first in range(0, n, chunk):
        extra = (first, chunk, room)
        some = min(chunk, n - first)
        if b.has("subset"):
            b.launch("encode_gather", over_cells(some, p), extra=extra)
        name, threads = tile(b, b.m, some)
        b.launch(f"encode_product_{name}", threads, extra=extra)
        b.launch("encode_filter", rows, extra=extra)
    b.launch("encode_finish", rows, extra=(0, chunk, room))


def batch_topk(b: Binder, op) -> None:
    n = b.shape("w")[0]
    item = b.plan.dtype.itemsize
    chunk = chunk_of(b.m, n)
    rows = blocks_of_rows(b.m, chunk)
    room = min(n, 2 * b.shape("val")[1] + 64 + rows[1][0] * STRIPS)
    memory = Memory()
    for count, size in ((1, 64), (BINS, 8), (b.m * chunk, item), (b.m * room, item), (b.m * room, 4), (b.m, 4), (b.m, 8)):
        memory.take(count, size)
    common = (0, chunk, room)
    b.launch("batch_begin", over_rows(b.m), work_bytes=memory.bytes, extra=common)
    for first in range(0, n, chunk):
        name, threads = tile(b, b.m, min(chunk, n - first))
        b.launch(f"batch_product_{name}", threads, extra=(first, chunk, room))
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


def pack_encoder(b: Binder, op) -> None:
    """Nothing to do."""


def narrow(b: Binder, op) -> None:
    b.launch("narrow", blocks_of_rows(b.m, b.shape("val")[1]))
