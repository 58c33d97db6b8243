"""A formula as a short program of block operations, which the native kernels run for formulas registered as text.

Every operation works on a block of elements that lies in the first-level cache, with the same vector functions and in
the same order as a formula of the catalogue that was compiled in: the bits are the same, and nothing is compiled at
run time.
"""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass

import numpy as np

from ..catalog import PRIMITIVES
from ..codegen import OPERATIONS, FormulaError, emit, parse

ARGUMENTS = 2  # operands 0, 1: the arguments; then PARAMETERS parameters, the constants, the temporaries
PARAMETERS = 2
MAX_CONSTANTS, MAX_TEMPORARIES = 64, 24  # as in csrc/kernels.h
MAX_DEPTH = 90  # of brackets in the Python that is made of a formula, with room below the parser's 200
_CODE = {name: i for i, name in enumerate(OPERATIONS)}
_INFIX = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div"}
_SELECT = {ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge", ast.Eq: "eq", ast.NotEq: "ne"}


@dataclass(frozen=True)
class Program:
    """code (n, 6) int32: operation, temporary of the result, four operands; the last one gives the formula's value."""

    code: np.ndarray
    constants: np.ndarray
    n_temporaries: int


class _Builder:
    """Numbers every distinct subexpression once, in an order that keeps few of them waiting."""

    def __init__(self, names: dict[str, int]):
        self.names = names
        self.constants: list[float] = []
        self.steps: list[tuple[str, tuple]] = []  # operation, operands: ("fixed", i), ("constant", i) or ("step", i)
        self.known: dict[tuple, tuple] = {}

    def step(self, operation: str, operands: tuple) -> tuple:
        key = (operation, operands)
        if key not in self.known:
            self.known[key] = ("step", len(self.steps))
            self.steps.append(key)
        return self.known[key]

    def constant(self, value: float) -> tuple:
        key = ("constant", repr(value))  # 0 and -0 are two
        if key not in self.known:
            self.known[key] = ("constant", len(self.constants))
            self.constants.append(value)
        return self.known[key]

    def walk(self, node: ast.expr) -> tuple:
        match node:
            case ast.Constant(value=int() | float() as value):
                return self.constant(float(value))
            case ast.UnaryOp(operand=ast.Constant(value=int() | float() as value)):
                return self.constant(-float(value))
            case ast.Name(id=name):
                return ("fixed", self.names[name])
            case ast.UnaryOp(operand=operand):
                return self.step("neg", (self.walk(operand),))
            case ast.BinOp(left=left, op=op, right=right):
                return self.step(_INFIX[type(op)], self.several([left, right]))
            case ast.Call(func=ast.Name(id="select"), args=[ast.Compare(left, [op], [right]), yes, no]):
                return self.step(f"select_{_SELECT[type(op)]}", self.several([left, right, yes, no]))
            case ast.Call(func=ast.Name(id="select"), args=[condition, _, _]):
                raise FormulaError(f"select takes a comparison first, such as x < 0; got {ast.unparse(condition)!r}")
            case ast.Call(func=ast.Name(id=name), args=args):
                return self.step(name, self.several(args))
        raise FormulaError(f"{ast.unparse(node)!r} may only stand as the first argument of select")

    def several(self, nodes: list[ast.expr]) -> tuple:
        """Operands in order, the deepest worked out first: a chain of sums then needs one temporary, not many."""
        done = {i: self.walk(nodes[i]) for i in sorted(range(len(nodes)), key=lambda i: -_depth(nodes[i]))}
        return tuple(done[i] for i in range(len(nodes)))


def _finite(value: float) -> str:
    if not math.isfinite(value):
        raise OverflowError
    return repr(value)


def _depth(node: ast.AST) -> int:
    return 1 + max((_depth(child) for child in ast.iter_child_nodes(node)), default=0)


def compile_program(text: str, arguments: list[str], parameters: list[str]) -> Program:
    """The program of a formula; FormulaError for anything that the language does not have, or that is too long."""
    names = {name: i for i, name in enumerate(arguments)}
    names |= {name: ARGUMENTS + i for i, name in enumerate(parameters)}
    try:
        tree = parse(text)
        if _depth(tree) > MAX_DEPTH:
            raise RecursionError
        # refuses what isn't the language
        emit(text, {name: name for name in names}, _finite, lambda name, args: name, PRIMITIVES)
    except (OverflowError, RecursionError) as error:
        reason = "a number too large" if isinstance(error, OverflowError) else f"more than {MAX_DEPTH} terms in a chain"
        raise FormulaError(f"formula {text[:60]!r} has {reason}; simplify it") from error
    builder = _Builder(names)
    result = builder.walk(tree)
    if result[0] != "step" or result[1] != len(builder.steps) - 1:
        builder.steps.append(("copy", (result,)))
    last = {operand: i for i, (_, operands) in enumerate(builder.steps) for operand in operands}
    place: dict[tuple, int] = {}
    free: list[int] = []
    used = 0
    code = np.zeros((len(builder.steps), 6), dtype=np.int32)
    first = ARGUMENTS + PARAMETERS
    for i, (operation, operands) in enumerate(builder.steps):
        at = {"fixed": 0, "constant": first, "step": first + len(builder.constants)}
        numbers = [at[kind] + (place[kind, n] if kind == "step" else n) for kind, n in operands]
        free += sorted({place[operand] for operand in operands if operand[0] == "step" and last[operand] == i})
        if not free:
            free.append(used)
            used += 1
        place["step", i] = free.pop()
        code[i] = (_CODE[operation], place["step", i], *numbers, *[0] * (4 - len(numbers)))
    if used > MAX_TEMPORARIES or len(builder.constants) > MAX_CONSTANTS:
        raise FormulaError(
            f"formula {text!r} needs {used} intermediate values and {len(builder.constants)} numbers; at most "
            f"{MAX_TEMPORARIES} and {MAX_CONSTANTS} are possible; simplify it"
        )
    return Program(code, np.array(builder.constants, dtype=np.float64), used)


__all__ = ["Program", "compile_program"]
