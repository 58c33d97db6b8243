"""Philox4x32-10 (Salmon et al., 2011), and what is drawn from it: masks, noise, permutations."""

import numpy as np

from ...plan.schema import NOISE_KINDS, SHUFFLE_STREAM

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(counter, key):
    """Four words of each counter; counter: 4 arrays of uint64 below 2³², key: two integers below 2³²."""
    c0, c1, c2, c3 = (np.asarray(c, dtype=np.uint64) for c in counter)
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ np.uint64(k0), p1 & _LOW, (p0 >> _32) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return c0, c1, c2, c3


def words(seed, epoch, stream, rows, columns):
    """(rows, columns) uint32: word ``column % 4`` of the block at (column // 4 | stream << 24, row, epoch)."""
    rows = np.asarray(rows, dtype=np.uint64)[:, None]
    block = np.arange(-(-columns // 4), dtype=np.uint64)[None, :] | np.uint64(stream << 24)
    shape = np.broadcast_shapes(rows.shape, block.shape)
    counter = np.broadcast_arrays(block, rows & _LOW, rows >> _32, np.uint64(epoch))
    drawn = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    return np.stack(drawn, axis=-1).reshape(shape[0], -1)[:, :columns].astype(np.uint32)


def kept(step, op, rows, columns):
    """Factor of each element under inverted dropout: 0 or 1 / (1 − rate)."""
    rate = op.floats.get("rate", 0.0)
    if rate == 0:
        return 1.0
    w = words(step.job.seed, step.job.epoch, op.ints["stream"], rows[:, 0], columns)
    return np.where(w < int(rate * 2**32), 0.0, 1.0 / (1.0 - rate))


def dropped(x, factor):
    """x times the factor; 0 where dropped, also where x is infinite."""
    return x if np.isscalar(factor) else np.where(factor == 0, 0.0, x * factor)


def dropout(step, op, v):
    x = v["x"].astype(np.float64)
    v["y"][...] = dropped(x, kept(step, op, v["rows"], x.shape[1]))


def noise(step, op, v):
    x = v["x"].astype(np.float64)
    m, p = x.shape
    kind, amount, stream = NOISE_KINDS[op.ints["kind"]], op.floats["amount"], op.ints["stream"]
    key = step.job.seed, step.job.epoch
    columns = -(-p // 4) * 4
    w = words(*key, stream, v["rows"][:, 0], columns)
    threshold = int(amount * 2**32) if kind != "gaussian" else 0
    if kind == "gaussian":
        u1 = ((w[:, 0::2] >> 8) + 0.5) * 2.0**-24
        u2 = (w[:, 1::2] >> 8) * 2.0**-24
        radius = np.sqrt(-2 * np.log(u1)) * amount
        deviates = np.stack([radius * np.cos(2 * np.pi * u2), radius * np.sin(2 * np.pi * u2)], axis=-1)
        y = x + deviates.reshape(m, columns)[:, :p]
    elif kind == "masking":
        y = np.where(w[:, :p] < threshold, 0.0, x)
    elif kind == "salt_and_pepper":
        pepper = np.where(w[:, :p] < threshold // 2, op.floats["low"], op.floats["high"])
        y = np.where(w[:, :p] < threshold, pepper, x)
    else:
        partner = (words(*key, stream + 1, v["rows"][:, 0], p).astype(np.uint64) * np.uint64(m)) >> _32
        y = np.where(w[:, :p] < threshold, x[partner.astype(np.int64), np.arange(p)], x)
    v["y"][...] = y


def neighbour(step, op, v):
    """A neighbour of each row, drawn by edge weight from one word; half the row's weights."""
    graph = step.job.sources[op.ints["source"]]
    drawn = words(step.job.seed, step.job.epoch, op.ints["stream"], v["rows"][:, 0], 1)[:, 0]
    for r, (row, word) in enumerate(zip(v["rows"][:, 0], drawn, strict=True)):
        span = slice(graph.indptr[row], graph.indptr[row + 1])
        sums = np.cumsum(graph.data[span], dtype=np.float64)
        total = sums[-1] if len(sums) else 0.0
        v["coefficient"][r, 0] = 0.5 * total
        q = np.searchsorted(sums, (float(word) + 0.5) * 2.0**-32 * total, side="right")
        v["out"][r, 0] = graph.indices[span][min(q, len(sums) - 1)] if total > 0 else row


def permutation(seed, epoch, n):
    """Fisher–Yates; index i draws 64 bits from columns 2i, 2i + 1 of the shuffle stream, 2¹⁹ indices a row."""
    order = np.arange(n, dtype=np.int64)
    if n < 2:
        return order
    rows = np.arange(-(-n // 2**19))
    drawn = words(seed, epoch, SHUFFLE_STREAM, rows, min(2 * n, 2**20)).reshape(-1).astype(np.uint64)
    bound = np.arange(1, n + 1, dtype=np.uint64)
    high, low = drawn[0 : 2 * n : 2], drawn[1 : 2 * n : 2]
    target = ((high * bound + ((low * bound) >> _32)) >> _32).tolist()
    out = order.tolist()
    for i in range(n - 1, 0, -1):
        j = target[i]
        out[i], out[j] = out[j], out[i]
    return np.array(out, dtype=np.int64)
