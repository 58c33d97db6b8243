"""Sparse autoencoders → plans: training, inference. Pure functions.

Space theta holds the trainable arrays in the order of `SparseNetwork.parameters`, then what no rule touches: how long
each latent has not fired, the threshold of batch_topk, averaged weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..spec.sparse import Gated, JumpReLU, Matryoshka, ReLUCode, SparseNetwork
from . import schema
from .fuse import fuse_updates
from .plan import Plan, PlanBuilder
from .schema import ARENA, BATCH_ROWS, FLOAT64, GRAD, INT8, INT32, INT64, PREPARE, THETA, UPDATE
from .update import rule

SPARSE_BATCH = 256  # rows of a step of inference
LOSS, OTHER, L0, VARIANCE, OVERFLOW = range(5)  # columns of a training plan's values
_CODE_BYTES = 1 << 28  # entries of a ragged code that are planned for, per array; more come with an overflow
EPSILON = 1e-5  # of the rows' deviation


@dataclass(frozen=True)
class Scalars:
    """Columns of a training plan's scalars: the learning rate, the rule's constants, and what else changes."""

    rate: int
    rule: int
    k: int
    strength: int
    decay: int  # of batch_topk's threshold


def scalars_of(network: SparseNetwork) -> Scalars:
    n = 1 + len(network.solver._row.step)
    annealed = getattr(network.selection, "k_start", None) is not None
    wanted = (annealed, network.sparsity.penalty, network.selection.name == "batch_topk")
    return Scalars(0, 1, *(n + sum(wanted[:i]) if wanted[i] else -1 for i in range(3)))


def capacity_of(network: SparseNetwork, batch: int) -> int:
    """Entries per row that a code has room for at first."""
    if not network.ragged:
        return network.k_most
    return min(network.n_components, max(64, 4 * (network.k or 1), _CODE_BYTES // (4 * batch)))


class _Builder:
    """What the plans share: parameters, rows in, and codes with their parts."""

    def __init__(self, network: SparseNetwork, dtype, batch: int, title: str, spaces=(THETA,), *, bf16: int = 0):
        self.network, self.bf16 = network, bf16
        self.plan = PlanBuilder(dtype, batch, title)
        for space, prefix in zip(spaces, ("", "d"), strict=False):
            for name, rows, columns in network.parameters:
                self.plan.buffer(prefix + name, rows, columns, space)

    def op(self, *args, **attributes) -> None:
        self.plan.op(*args, **attributes)

    def batch(self, name: str, columns: int, dtype: int = schema.REAL) -> str:
        return self.plan.buffer(name, BATCH_ROWS, columns, ARENA, dtype)

    def constants(self) -> None:
        """Arrays behind the parameters; also what a fitted model's inference reads."""
        network = self.network
        self.plan.buffer("since", 1, network.n_components, THETA, INT64)
        self.plan.buffer("batch_threshold", 1, 1, THETA)
        self.plan.buffer("guess", 1, 1, THETA)
        if network.groups is not None:
            self.plan.buffer("groups", 1, len(network.groups), THETA, INT32)

    def rows(self, *, targets: bool = True, statistics: bool = False) -> tuple[str, str]:
        """The encoder's input and the target (with ``targets``), both in the units of training.

        What is gathered is only read: the compiled backend leaves it where the caller has it.
        """
        network = self.network
        x = self.batch("x", network.n_features)
        self.op("gather", x=x, source=0)
        inner, other = x, None
        if network.transcoder and targets:
            other = self.batch("target", network.n_targets)
            self.op("gather", x=other, source=1)
        if network.normalization == "layer":  # of a transcoder, the encoder's input alone
            kept = self.batch("statistics", 2, FLOAT64) if statistics else None
            inner = self.batch("normalized", network.n_features)
            self.op("standardize", x=x, y=inner, epsilon=EPSILON, statistics=kept)
        elif network.normalization == "scale":
            inner = self.batch("normalized", network.n_features)
            self.op("centre", x=x, y=inner, scale=network.input_scale)
            if other is not None:
                scaled = self.batch("normalized_target", network.n_targets)
                self.op("centre", x=other, y=scaled, scale=network.input_scale)
                other = scaled
        self.skip_input = inner if network.normalization == "scale" else x
        return self.centred(inner), inner if other is None else other

    def centred(self, x: str) -> str:
        network = self.network
        if not network.pre_bias:
            return x
        inner = self.batch("centred", network.n_features)
        self.op("centre", x=x, b="decoder_bias", y=inner, scale=1.0)
        return inner

    @property
    def gated(self) -> bool:
        return isinstance(self.network.sparsity, Gated)

    @property
    def encoder_bias(self) -> str:
        return "gate_bias" if self.gated else "encoder_bias"

    def threshold(self) -> str | None:
        """The buffer of θ where a code has one."""
        sparsity = self.network.sparsity
        if not isinstance(sparsity, JumpReLU):
            return None
        if not sparsity.logarithm:
            return "threshold"
        self.op("exponential", x="threshold", y=self.plan.buffer("exp_threshold", 1, self.network.n_components))
        return "exp_threshold"


class _Training(_Builder):
    def __init__(self, network: SparseNetwork, dtype, batch: int, capacity: int, bf16: int):
        super().__init__(network, dtype, batch, "training of a sparse autoencoder", (THETA, GRAD), bf16=bf16)
        self.plan.flat(network.solver._row.states)
        self.constants()
        if network.ema is not None:
            size = self.plan.columns("theta")
            self.plan.buffer("ema", 1, size, THETA)
        for column in (LOSS, OTHER, L0, VARIANCE, OVERFLOW):
            assert self.plan.value() == column
        self.scalars = scalars_of(network)
        more = (self.scalars.k, self.scalars.strength, self.scalars.decay)
        width = 1 + len(network.solver._row.step) + sum(column >= 0 for column in more)
        self.plan.scalars(width)
        multi = getattr(network.selection, "multi", None)
        self.multi = multi
        self.aux = network.aux
        # the gate's own reconstruction is a code of its own where the decoder learns from it
        self.own_gate = isinstance(network.sparsity, Gated) and not network.sparsity.detached
        self.n_segments = 1 + (multi is not None) + (self.aux is not None) + self.own_gate
        widths = [capacity]
        if multi is not None:
            widths.append(network.k_most * multi.factor)
        if self.aux is not None:
            widths.append(self.aux.k or 1)
        self.width = max(widths)
        self.n_groups = len(network.groups or (0,))
        self.n_blocks = self.n_groups + self.n_segments - 1

    def segment(self, name: str, q: int) -> str:
        width = 1 if name == "count" else self.width
        return self.plan.part(name, q * width, width)

    def code(self, q: int, names=("val", "idx", "count")) -> dict[str, str]:
        return {name: self.segment(name, q) for name in names}

    def block(self, first: int, count: int = 1) -> str:
        p = self.network.n_targets
        return self.plan.part("delta", first * p, count * p)

    def build(self) -> Plan:
        network = self.network
        x, target = self.rows()
        wide = self.n_segments * self.width
        for name, dtype in (("val", schema.REAL), ("idx", INT32), ("dval", schema.REAL)):
            self.batch(name, wide, dtype)
        self.batch("count", self.n_segments, INT32)
        self.batch("delta", self.n_blocks * network.n_targets)
        self.encode(x)
        self.op("code_statistics", val=self.segment("val", 0), count=self.segment("count", 0), value=L0)
        self.reconstruct(target)
        self.gradients(x)
        rule(self.plan, network.solver, self.scalars.rule)
        if network.unit_norm:
            self.op("project", UPDATE, w="decoder", kind=schema.PROJECT_KINDS.index("unit"))
        if isinstance(network.sparsity, JumpReLU) and not network.sparsity.logarithm:
            self.op("project", UPDATE, w="threshold", kind=schema.PROJECT_KINDS.index("non_negative"))
        self.op("fired", UPDATE, **self.code(0), since="since")
        if network.ema is not None:
            self.op("average", UPDATE, w="theta", mean="ema", decay=network.ema)
        return fuse_updates(self.plan.build())

    # ---- forward ---

    def encode(self, x: str) -> None:
        network, sparsity = self.network, self.network.selection
        common = {"x": x, "w": "encoder", "b": self.encoder_bias, "overflow": OVERFLOW, "bf16": self.bf16}
        code = self.code(0)
        limit = {"k": network.k_most, "k_scalar": self.scalars.k}
        if sparsity.name == "batch_topk":
            self.op("batch_topk", **common, **code, **limit, threshold="batch_threshold", guess="guess",
                    decay=sparsity.threshold_decay,  # type: ignore[attr-defined]
                    decay_scalar=self.scalars.decay)  # fmt: skip
        elif sparsity.name in ("topk", "abs_topk"):
            kind = schema.CODE_KINDS.index(sparsity.name)
            if self.multi is None:
                self.op("encode", **common, **code, **limit, kind=kind)
            else:
                wide = self.code(1)
                self.op("encode", **common, **wide, kind=kind, k=network.k_most * self.multi.factor, k_scalar=-1)
                self.op("narrow", **wide, **{f"{name}_out": b for name, b in code.items()}, **limit,
                        magnitude=sparsity.name == "abs_topk")  # fmt: skip
        else:
            kind = schema.CODE_KINDS.index("threshold")
            self.batch("pre", self.width)
            gate = self.gate_code = self.code(1) if self.own_gate else code
            margin = sparsity.bandwidth / 2 if isinstance(sparsity, JumpReLU) else 0.0
            self.theta = self.threshold()
            self.op("encode", **common, **gate, kind=kind, k_scalar=-1, pre="pre", threshold=self.theta, margin=margin)
            if self.gated:
                if self.own_gate:  # the same latents twice: with magnitudes, and with pre-activations
                    self.op(
                        "narrow", **gate, **{f"{name}_out": b for name, b in code.items()}, k=self.width, k_scalar=-1
                    )
                    self.magnitude = code["val"]
                else:
                    self.magnitude = self.batch("magnitude", self.width)
                self.op("gated_code", pre="pre", idx=code["idx"], count=code["count"], r="magnitude_log_scale",
                        b_gate="gate_bias", b_mag="magnitude_bias", val=self.magnitude)  # fmt: skip
        if self.aux is not None:
            self.plan.buffer("dead_latents", 1, network.n_components, ARENA, INT32)
            self.plan.buffer("n_dead", 1, 1, ARENA, INT32)
            self.op("dead", since="since", list="dead_latents", n_dead="n_dead", limit=network.dead_after)
            aux = self.code(self.n_segments - 1)
            if not self.aux.relu:  # what is decoded are the pre-activations
                aux |= {"val": self.batch("aux_relu", self.width), "pre": aux["val"]}
            self.op("encode", **common, **aux, kind=schema.CODE_KINDS.index("topk"), k=self.aux.k, k_scalar=-1,
                    subset="dead_latents", n_subset="n_dead")  # fmt: skip

    def reconstruct(self, target: str) -> None:
        """Reconstructions in `delta`, whose place their gradients take."""
        network, groups = self.network, self.n_groups
        val = self.magnitude if self.gated else self.segment("val", 0)
        parts = {"groups": "groups"} if groups > 1 else {}
        code = {**self.code(0), "val": val}
        self.op("decode", **code, w="decoder", b="decoder_bias", y=self.block(0, groups), **parts)
        full = list(range(groups))
        if self.multi is not None:
            self.op("decode", **self.code(1), w="decoder", b="decoder_bias", y=self.block(groups))
            full.append(groups)
        if network.skip:
            self.batch("skipped", network.n_targets)
            self.op("dense", x=self.skip_input, w="skip", y="skipped")
            for b in full:
                self.op("add", x="skipped", y=self.block(b), sum=self.block(b))
        if self.aux is not None:
            last = self.block(self.n_blocks - 1)
            self.op("decode", **self.code(self.n_segments - 1), w="decoder", y=last)
            self.op("squared_error", y=last, target=target, base=self.block(groups - 1), dy=last, n_dead="n_dead",
                    value=OTHER, variance=-1, norm=schema.ERROR_NORMS.index(self.aux.norm), scale=self.aux.strength,
                    k_aux=self.aux.k if self.aux.scaled else 0)  # fmt: skip
        if self.gated:
            delta = self.gate_delta = self.block(1) if self.own_gate else self.batch("gate_delta", network.n_targets)
            self.op("decode", **self.gate_code, w="decoder", b="decoder_bias", y=delta)
            self.op("squared_error", y=delta, target=target, dy=delta, value=OTHER, variance=-1, scale=1.0)
        mean = isinstance(network.sparsity, Matryoshka) and network.sparsity.reduction == "mean"
        for b in full:
            weight = self.multi.weight if b == groups and self.multi is not None else 1.0 / groups if mean else 1.0
            self.error(self.block(b), target, weight, whole=b == groups - 1)
        if groups > 1:
            self.op("suffix_sum", x=self.block(0, groups), blocks=groups)

    def error(self, y: str, target: str, scale: float, whole: bool) -> None:
        """Of one reconstruction; ``whole``: the one that the fitted model gives."""
        value, variance = (LOSS, VARIANCE) if whole else (OTHER, -1)
        if self.network.loss == "cosine":
            if "row_value" not in self.plan._buffers:
                self.batch("row_value", 1, FLOAT64)
            self.op("loss", y=y, target=target, dy=y, row_value="row_value", loss=schema.COSINE, value=value,
                    scale=scale)  # fmt: skip
            return
        norm = "target" if self.network.loss == "normalized" else "none"
        self.op("squared_error", y=y, target=target, dy=y, value=value, variance=variance, scale=scale,
                norm=schema.ERROR_NORMS.index(norm))  # fmt: skip

    # ---- backward ---

    def gradients(self, x: str) -> None:
        network, sparsity, n = self.network, self.network.sparsity, self.network.n_components
        groups = {"groups": "groups"} if self.n_groups > 1 else {}
        where = {"idx": self.segment("idx", 0), "count": self.segment("count", 0)}
        first = self.segment("dval", 0)
        self.op("code_grad", dy=self.block(0, self.n_groups), **where, w="decoder", dval=first, **groups)
        for q in range(1, self.n_segments - self.own_gate):
            self.op("code_grad", dy=self.block(self.n_groups + q - 1), idx=self.segment("idx", q),
                    count=self.segment("count", q), w="decoder", dval=self.segment("dval", q))  # fmt: skip
        code_value = self.magnitude if self.gated and not self.own_gate else "val"
        penalised = self.gate_code["val"] if self.gated else "val"
        spaces = len(network.spaces or (0,))
        free = not network.unit_norm or spaces > 1  # whether a penalty on norms reaches the decoder
        norms = {"w": "decoder"} if getattr(sparsity, "weighted", False) else {}
        s = {"scalar": self.scalars.strength, "strength": getattr(sparsity, "strength", 0.0)}
        match sparsity:
            case ReLUCode():
                self.op("code_penalty", val="val", **where, dval=first, **norms, value=OTHER, spaces=spaces, **s)
            case JumpReLU():
                self.batch("dtheta", self.width)
                norms = {"w": "decoder"} if sparsity.penalty_kind == "tanh" else {}
                self.op("jumprelu_grad", pre="pre", val="val", **where, threshold="threshold", dval=first, dz=first,
                        dtheta="dtheta", **norms, value=OTHER, l0=-1,
                        penalty=schema.JUMP_PENALTIES.index(sparsity.penalty_kind), logarithm=sparsity.logarithm,
                        above=sparsity.window == "above", bandwidth=sparsity.bandwidth,
                        target=sparsity.target_l0 or 1.0, p0=sparsity.tanh_scale, **s)  # fmt: skip
            case Gated():
                for name in ("dgate", "dmag", "dr"):
                    self.batch(name, self.width)
                self.op("code_grad", dy=self.gate_delta, **where, w="decoder", dval="dgate")
                self.op("gated_grad", pre="pre", val=self.magnitude, **where, r="magnitude_log_scale",
                        b_gate="gate_bias", dval=first, dgate="dgate", dz=first, dmag="dmag", dr="dr", **norms,
                        value=OTHER, **s)  # fmt: skip
            case _:
                signed = 1 + (self.multi is not None) if network.selection.name == "abs_topk" else 0
                for q in range(signed, self.n_segments - (self.aux is not None and not self.aux.relu)):
                    self.op("relu_grad", val=self.segment("val", q), count=self.segment("count", q),
                            dval=self.segment("dval", q))  # fmt: skip
        every = lists = self.lists("", "idx", "count")
        if self.own_gate:
            lists = self.lists("first_", where["idx"], where["count"])
        factor = None
        if free and norms:
            slope = sparsity.tanh_scale if isinstance(sparsity, JumpReLU) else 0.0
            parts = 1 if slope else spaces  # tanh has the norms of whole rows
            factor = self.plan.buffer("factor", parts, n, ARENA, FLOAT64)
            self.op("norm_factor", val=penalised, **lists, w="decoder", factor=factor, spaces=parts, p0=slope, **s)
        whole = (self.n_groups,) if self.multi is not None or self.own_gate else ()
        for i, b in enumerate((0, *whole)):
            self.op("bias_grad", dy=self.block(b), db="ddecoder_bias", add=i > 0)
        if self.gated:
            for coef, name in (("dgate", "gate_bias"), ("dmag", "magnitude_bias"), ("dr", "magnitude_log_scale")):
                self.op("latent_sum", coef=coef, **lists, sum=f"d{name}")
        else:
            self.op("latent_sum", coef="dval", **lists, sum="dencoder_bias")
        if isinstance(sparsity, JumpReLU):
            self.op("latent_sum", coef="dtheta", **lists, sum="dthreshold")
        if network.pre_bias:
            self.pre_bias(lists)
        if network.skip:
            self.op("dense_grad", dz=self.block(0), x=self.skip_input, w="skip", dw="dskip")
            if self.multi is not None:
                self.op("dense_grad", dz=self.block(self.n_groups), x=self.skip_input, w="skip", dw="dskip", add=1)
        self.op("latent_grad", coef=code_value, **every, u="delta", w="decoder", dw="ddecoder", factor=factor, **groups,
                capacity=self.width, unit=network.unit_norm)  # fmt: skip
        own = first if self.own_gate else "dval"
        self.op("latent_grad", coef=own, **lists, u=x, w="encoder", dw="dencoder", capacity=self.width)

    def lists(self, prefix: str, idx: str, count: str) -> dict[str, str]:
        """A code's entries by latent."""
        start = self.plan.buffer(f"{prefix}start", 1, self.network.n_components + 1, ARENA, INT64)
        entry = self.batch(f"{prefix}entry", self.plan.columns(idx), INT64)
        self.op("by_latent", idx=idx, count=count, start=start, entry=entry, capacity=self.width)
        return {"start": start, "entry": entry}

    def pre_bias(self, lists: dict[str, str]) -> None:
        """The gradient that reaches the decoder's bias through the encoder's input."""
        total = "dencoder_bias"
        if self.gated:  # dz is neither of the biases' gradients
            total = self.plan.buffer("dz_sum", 1, self.network.n_components)
            self.op("latent_sum", coef=self.segment("dval", 0), **lists, sum=total)
        self.op("pre_bias_grad", db=total, w="encoder", dbias="ddecoder_bias", scale=1.0)


def sparse_training_plan(
    network: SparseNetwork, dtype, batch: int, capacity: int | None = None, *, bf16: int = 0
) -> Plan:
    """gradient: loss and gradients of one batch. update: the rule, unit norms, which latents fired.

    values: `LOSS` of the reconstruction, `OTHER` terms, mean `L0`, `VARIANCE` of the target, `OVERFLOW`; the objective
    is the sum of the first two. An overflow is infinite: a row has more entries than ``capacity``, and the step must be
    run by a plan that has room for them. ``bf16``, here and below: 1 for the encoder's products in bfloat16, everything
    else in ``dtype`` (float32).
    """
    return _Training(network, dtype, batch, capacity or capacity_of(network, batch), bf16).build()


def sparse_inference_plan(
    network: SparseNetwork, dtype, batch: int = SPARSE_BATCH, *, part: str = "encode", k: int | None = None,
    capacity: int | None = None, path: str = "auto", bf16: int = 0,
) -> Plan:  # fmt: skip
    """part: "encode" (X → externals val, idx, count), "reconstruct" (X → external out) or "decode" (externals val, idx,
    count → external out).

    k : for the top-k kinds, instead of the network's; k for batch_topk: the k largest of each row
    capacity : entries per row; count is larger than it where a row has more
    """
    builder = _Builder(network, dtype, batch, part, bf16=bf16)
    builder.constants()
    sparsity = network.selection
    restored = network.normalization == "layer" and part == "reconstruct" and not network.transcoder
    by_rank = sparsity.name in ("topk", "abs_topk") or k is not None
    k = k if k is not None else network.k or 1
    width = k if by_rank else capacity or capacity_of(network, batch)
    external = part != "reconstruct"
    declare = builder.plan.external if external else lambda name, rows, columns, dtype=schema.REAL: builder.plan.buffer(
        name, rows, columns, ARENA, dtype)  # fmt: skip
    code = {"val": declare("val", BATCH_ROWS, width), "idx": declare("idx", BATCH_ROWS, width, INT32),
            "count": declare("count", BATCH_ROWS, 1, INT32)}  # fmt: skip
    if part != "encode":
        builder.plan.external("out", BATCH_ROWS, network.n_targets)
    if part != "decode":
        x, _ = builder.rows(targets=False, statistics=restored)
        n = -(-network.n_components // 64) * 64
        packed = builder.plan.buffer("packed", n, schema.pack_columns(network.n_features), ARENA, INT8)
        builder.op("pack_encoder", PREPARE, w="encoder", packed=packed, bf16=bf16)
        gated = builder.gated
        if gated:
            builder.batch("pre", width)
        if by_rank:
            kind = "abs_topk" if sparsity.name == "abs_topk" else "topk"
            threshold = None
        else:
            kind = "threshold"
            threshold = "batch_threshold" if sparsity.name == "batch_topk" else builder.threshold()
        builder.op("encode", x=x, w="encoder", b=builder.encoder_bias, threshold=threshold, packed=packed, **code,
                   pre="pre" if gated else None, kind=schema.CODE_KINDS.index(kind), k=k, k_scalar=-1, overflow=-1,
                   path=schema.ENCODE_PATHS.index(path), bf16=bf16)  # fmt: skip
        if gated:
            builder.op("gated_code", pre="pre", idx=code["idx"], count=code["count"], r="magnitude_log_scale",
                       b_gate="gate_bias", b_mag="magnitude_bias", val=code["val"])  # fmt: skip
    if part != "encode":
        builder.op("decode", **code, w="decoder", b="decoder_bias", y="out")
        if network.skip and part == "reconstruct":
            builder.batch("skipped", network.n_targets)
            builder.op("dense", x=builder.skip_input, w="skip", y="skipped")
            builder.op("add", x="skipped", y="out", sum="out")
        if restored:
            builder.op("restore", y="out", statistics="statistics", out="out")
        elif network.normalization == "scale":
            builder.op("centre", x="out", y="out", scale=1.0 / network.input_scale)
    return builder.plan.build()


__all__ = ["SPARSE_BATCH", "Scalars", "scalars_of", "sparse_inference_plan", "sparse_training_plan"]
