"""Small products of layers in bfloat16 by the kernels of csrc/cuda/tensor.cuh, which do the rest of a layer as well.

cuBLASLt multiplies faster, by less than the launches take that have to follow it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...plan import schema
from ...plan.plan import Op
from ...registry import FORMULAS
from .launches import THREADS, Launch, Uses, ceil_div, overlap
from .lt import Matrix
from .record import LAUNCH

if TYPE_CHECKING:
    from .binder import Binder

SIDE = 64  # of a tile: kSide of tensor.cuh
MOST_TILES = 8  # of a layer's outputs, for each multiprocessor; of weights' gradients for so many rows:
DEEP = 1024
CHAIN_ROWS, CHAIN_WIDTH = 16, 512  # of a block; of the widest layer: as in chain.cuh
CHAIN_WEIGHTS = 192 << 10  # of all its layers, which each block reads
CHAIN_BLOCKS = 2  # for each multiprocessor
TOGETHER = 4  # layers whose gradients a launch makes: their slots and addresses are in one record
ONTO_WEIGHT, ONTO_BIAS, TURNED = 1, 2, 4  # Onto of tensor.cuh


def in_eights(b: Binder, *sides: int) -> bool:
    """Whether the op's products are in bfloat16, and some bytes and numbers of elements whole parts of 16 bytes."""
    return b.driver.tensor_cores and b.op.ints["bf16"] == 1 and not any(size % 16 for size in sides)  # type: ignore[union-attr]


def tiles(rows: int, columns: int) -> int:
    """How many of them a matrix is."""
    return ceil_div(rows, SIDE) * ceil_div(columns, SIDE)


def layer(b: Binder, kernel: str, left: Matrix, right: Matrix, columns: int, depth: int, out: str) -> bool:
    """Launches a layer's product and what follows it, if these kernels are to make it.

    left : (m, depth); right : (columns, depth) where it says transposed, else (depth, columns)
    kernel : "dense" or "input_grad"; out : the op's slot of the outputs
    """
    inner = depth if right.transposed else columns
    if not in_eights(b, left.address, right.address, 2 * left.ld, 2 * right.ld, 2 * inner, 2 * depth):
        return False
    if tiles(b.m, columns) > MOST_TILES * b.n_multiprocessors:
        return False
    grid = (ceil_div(columns, SIDE), ceil_div(b.m, SIDE), 1)
    b.launch(f"{kernel}_bf16", (grid, (THREADS, 1, 1)), extra=(left.address, right.address, b.copy(out)[2]))
    return True


def narrow(b: Binder, out: str, given: str) -> bool:
    """Whether the op at hand is a layer for `chain`."""
    slots = (given, "w", *(("x", "dw") if given == "dz" else ()))
    if not all(b.has(slot) for slot in (*slots, out)) or not all(b.keeps(slot) for slot in slots if slot != "dw"):
        return False
    formula = FORMULAS.get(b.registered())
    if formula is not None and formula.functions:
        return False
    widths = [b.shape(slot)[1] for slot in (given, out, "w")]
    places = [place for slot in slots if slot != "dw" for place in b.place(slot)]
    return max(widths) <= CHAIN_WIDTH and in_eights(b, *places, *(2 * width for width in widths))


def chain(b: Binder, out: str, given: str) -> bool:
    """Launches the op at hand with those that follow it, if each is a narrow layer that reads what the last one wrote.

    out, given : slots of a layer's outputs, and of what it makes them of
    """
    if b.op is not b.bound or not b.few or ceil_div(b.m, CHAIN_ROWS) > CHAIN_BLOCKS * b.n_multiprocessors:
        return False
    ops: list[Op] = []
    weights = 0
    for op in itertools.chain([b.bound], b.following()):
        assert op is not None
        if ops and (op.kind != ops[0].kind or op.slots.get(given) != ops[-1].slots[out]):
            break
        with b.bound_to(op):
            if not narrow(b, out, given):
                break
            weights += int(np.prod(b.shape("w")))
        if weights > CHAIN_WEIGHTS:
            break
        ops.append(op)
    while len(ops) > 1 and not apart(b, ops, out, given):
        ops.pop()
    if len(ops) < 2:
        return False
    records = np.concatenate([layer_of_chain(b, op, ops, out, given) for op in ops])
    held = b.driver.upload(records)
    record = np.zeros(1, LAUNCH)
    record["step"], record["m"], record["work"] = b.step, b.m, b.driver.address(held)
    record["extra"][0, 0] = len(ops)
    kernel = {"y": "dense_bf16_chain", "dx": "input_grad_bf16_chain"}[out]
    b.launches.append(Launch(kernel, (ceil_div(b.m, CHAIN_ROWS), 1, 1), (THREADS, 1, 1), 0, record, held=held))
    b.group = ops
    return True


def passes_on(b: Binder, op: Op, ops: list[Op], out: str, given: str) -> bool:
    """Whether only the next layer of a chain reads what one makes: that is not written in float32."""
    name = op.slots[out]
    whole = b.whole(name)
    read = {(one.kind, slot, one.slots[slot]) for one in b.plan.ops for slot in one.slots
            if one is not op and b.whole(one.slots[slot]) is whole}  # fmt: skip
    return op is not ops[-1] and read <= {(op.kind, given, name), ("dense_grad", given, name)}


def apart(b: Binder, ops: list[Op], out: str, given: str) -> bool:
    """Whether blocks of rows can go through the layers each at its own pace.

    What one layer writes in float32 may not lie where another reads or writes, as the arena is laid out for ops one
    after another, unless rows lie upon the same rows.
    """
    seen: list[tuple[bool, tuple[int, int], tuple[int, int, int]]] = []
    for op in ops:
        with b.bound_to(op):
            written = {out, "z"} - ({out} if passes_on(b, op, ops, out, given) else set())
            own = []
            for slot in ("saved", "z", out):
                if b.has(slot) and (slot == "saved" or slot in written):
                    address, ld = b.locate(b.buffer(slot))
                    own.append((slot in written, b.span(slot), (address, ld, b.shape(slot)[1])))
        for writes, span, rows in own:
            for wrote, other, their_rows in seen:
                if (writes or wrote) and rows != their_rows and overlap([span], [other]):
                    return False
        seen += own
    return True


def layer_of_chain(b: Binder, op: Op, ops: list[Op], out: str, given: str) -> np.ndarray:
    """A layer's record; its operands that are not there in bfloat16 are rounded before."""
    with b.bound_to(op):
        b.make_way(b.uses())
        b.operands(*((slot, False) for slot in ("w", "x") if slot == "w" or given == "dz"))
        record = b.record(extra=(b.place(given)[0], b.place("w")[0], b.copy(out)[2]))
        if passes_on(b, op, ops, out, given):
            record["slot"][0, schema.KIND[op.kind].slots.index(out)]["p"] = 0
    return record


@dataclass(frozen=True)
class WeightGradient:
    """dw (n, k) = dzT x and db = sum_r dz of a layer; onto : bits of tensor.cuh's Onto."""

    dz: Matrix
    x: Matrix
    dw: Matrix
    db: int
    n: int
    k: int
    onto: int

    def uses(self, b: Binder) -> Uses:
        reads = [(matrix.address, matrix.address + 2 * b.m * matrix.ld) for matrix in (self.dz, self.x)]
        return Uses(reads, [b.span(slot) for slot in ("dw", "db") if slot == "dw" or self.db])


def normalised(b: Binder) -> bool:
    """Whether a normalisation follows the layer at hand: its biases' gradients are 0 but for rounding."""
    name = b.op.slots["dz"]  # type: ignore[union-attr]
    return any(name in op.slots.values() for op in b.plan.ops if op.kind in ("batch_norm_grad", "layer_norm_grad"))


def weight_gradient(b: Binder, dz: Matrix, x: Matrix, db: int) -> bool:
    """Makes dw, and db if that is not 0, with those of other layers, if these kernels are to make them."""
    n, k = b.shape("dz")[1], b.shape("x")[1]
    if not b.few or tiles(n, k) * b.m > MOST_TILES * DEEP * b.n_multiprocessors:
        return False
    if not in_eights(b, dz.address, x.address, 2 * dz.ld, 2 * x.ld, 2 * n, 2 * k):
        return False
    ints = b.op.ints  # type: ignore[union-attr]
    onto = ONTO_WEIGHT * bool(ints["add"]) | ONTO_BIAS * bool(ints["add_bias"]) | TURNED * bool(ints["transposed"])
    part = WeightGradient(dz, x, b.matrix("dw"), db, n, k, onto)
    if b.keeps("dz") and b.keeps("x"):
        b.together(part, part.uses(b), weight_gradients, TOGETHER)
    else:
        b.launches.append(weight_gradients(b, [part]))
    return True


def weight_gradients(b: Binder, parts: list[WeightGradient]) -> Launch:
    """One launch for the gradients of some layers."""
    record = np.zeros(1, LAUNCH)
    record["step"], record["m"] = b.step, b.m
    record["i"][0, : 1 + len(parts)] = [len(parts), *(part.onto for part in parts)]
    for q, part in enumerate(parts):
        rows, columns = (part.k, part.n) if part.onto & TURNED else (part.n, part.k)
        record["slot"][0, 3 * q] = (part.dz.address, part.dz.ld, b.m, part.n)
        record["slot"][0, 3 * q + 1] = (part.x.address, part.x.ld, b.m, part.k)
        record["slot"][0, 3 * q + 2] = (part.dw.address, part.dw.ld, rows, columns)
        record["extra"][0, q] = part.db
    grid = (sum(tiles(part.n, part.k) for part in parts), 1, 1)
    return Launch("weight_grad_bf16", grid, (THREADS, 1, 1), 0, record)
