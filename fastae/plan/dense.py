"""Records of dense layers: rows in, noise, forward, backward, packed weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..spec import options
from ..spec.network import Layer, Network
from . import schema
from .losses import transform_input
from .plan import PlanBuilder
from .schema import ARENA, BATCH_ROWS, FLOAT64, INT8_DEPTH, INT64, PREPARE, THETA

PACK_ROUND = 64  # columns of the widest packed panel


def packed_depth(k: int) -> int:
    """Elements of k in a packed weight; of bfloat16 they are half as large and come in tiles of 32."""
    return max(k, 16)


def parameters(builder: PlanBuilder, layers: tuple[Layer, ...], spaces=(THETA,)) -> None:
    """Trainable parameters layer by layer: w, b, and gamma, beta of a normalisation; tied layers have no w."""
    for space, prefix in zip(spaces, ("", "d"), strict=False):
        for i, layer in enumerate(layers):
            for name, rows, columns in layer.parameters:
                builder.buffer(f"{prefix}{name}{i}", rows, columns, space)


def statistics(builder: PlanBuilder, layers: tuple[Layer, ...]) -> None:
    """Running means and variances, behind the parameters: no update rule touches them."""
    for i, layer in enumerate(layers):
        for name, rows, columns in layer.statistics:
            builder.buffer(f"{name}{i}", rows, columns, THETA)


def weight_of(layers: tuple[Layer, ...], i: int) -> dict[str, Any]:
    """Record attributes of layer i's weights: its own, or another layer's transposed."""
    tied = layers[i].tied
    return {"w": f"w{i}"} if tied is None else {"w": f"w{tied}", "transposed": 1}


def formula(layer_activation: Any) -> dict[str, Any]:
    """Record attributes of an activation option."""
    parameters = options.values(layer_activation)
    return {"activation": layer_activation._index} | {f"p{i}": value for i, value in enumerate(parameters)}


def _identity(activation) -> bool:
    return activation.name == "identity"


def gather(builder: PlanBuilder, network: Network, *, weighted: bool) -> tuple[str, str]:
    """Rows of the input as the encoder sees them, and of the target (the input itself, or source 1)."""
    x = builder.buffer("x", BATCH_ROWS, network.n_features)
    weight = builder.buffer("weight", BATCH_ROWS, 1) if weighted else None
    rows = builder.buffer("rows", BATCH_ROWS, 1, ARENA, INT64)
    builder.op("gather", x=x, weight=weight, rows=rows, source=0)
    seen, target = transform_input(builder, network, x)
    if network.n_targets is None:
        return seen, target
    target = builder.buffer("target", BATCH_ROWS, network.n_targets)
    builder.op("gather", x=target, source=1)
    return seen, target


def noise(builder: PlanBuilder, noise, x: str, width: int) -> str:
    y = builder.buffer("noisy", BATCH_ROWS, width)
    kind = next(name for name, cls in options.NOISES.items() if isinstance(noise, cls))
    stream = builder.stream()
    if kind == "swap":
        builder.stream()  # the partner's words
    amount = noise.std if kind == "gaussian" else noise.rate
    builder.op("noise", x=x, y=y, rows="rows", kind=schema.NOISE_KINDS.index(kind), stream=stream, amount=amount,
               low=getattr(noise, "low", 0.0), high=getattr(noise, "high", 0.0))  # fmt: skip
    return y


@dataclass
class Trace:
    """What the backward pass needs of a layer: names of buffers."""

    layer: Layer
    x: str
    y: str
    stream: int = 0
    saved: str = ""  # what the activation's derivative is taken from
    z: str = ""  # input of the normalisation
    u: str = ""  # input of maxout
    statistics: dict[str, str] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether the derivative can be fused into the product of the layer behind."""
        return self.layer.norm is None and not self.layer.residual and self.layer.pieces == 1


class Forward:
    """Emits the forward pass and remembers what the backward pass needs of each layer.

    A second pass through the same layers (``branch``) draws the same masks for the same row ids.
    """

    def __init__(self, builder: PlanBuilder, layers: tuple[Layer, ...], training: bool, *, branch: str = "",
                 rows: str = "rows", streams: list[int] | None = None, int8: bool = False):  # fmt: skip
        self.builder, self.layers, self.training, self.int8 = builder, layers, training, int8
        self.branch, self.rows = branch, rows
        self.traces: list[Trace] = []
        self.streams = [builder.stream() if training and layer.dropout else 0 for layer in layers] if (
            streams is None) else streams  # fmt: skip

    def layer(self, i: int, x: str, *, last_activation=None, out: str | None = None, packed=None) -> str:
        """Adds layer i; ``last_activation`` replaces the layer's own (the loss may own it)."""
        layer, builder, tag = self.layers[i], self.builder, f"{self.branch}{i}"
        activation = last_activation or layer.activation
        folded = not self.training and isinstance(layer.norm, options.BatchNorm)
        norm = None if folded else layer.norm
        trace = Trace(layer, x, "", self.streams[i] if self.training else 0)
        self.traces.append(trace)
        weights: dict[str, Any] = {**weight_of(self.layers, i), "b": f"b{i}"}
        if folded:
            weights |= {"w": f"folded_w{i}", "b": f"folded_b{i}"}
        mask = {"rows": self.rows, "stream": trace.stream, "rate": layer.dropout} if (
            self.training and layer.dropout) else {}  # fmt: skip
        y = out or builder.buffer(f"y{tag}", BATCH_ROWS, layer.n_out)
        trace.y = trace.saved = y
        if norm is None and layer.pieces == 1 and activation.name != "softmax":
            if self.training and activation._row.needs == "x":
                trace.saved = builder.buffer(f"z{tag}", BATCH_ROWS, layer.n_out)
            self._product(i, x=x, y=y, z=None if trace.saved == y else trace.saved, packed=packed, **weights,
                          **mask, **formula(activation))  # fmt: skip
        else:
            z = builder.buffer(f"z{tag}", BATCH_ROWS, layer.n_units)
            self._product(i, x=x, y=z, packed=packed, **weights)
            u = z if norm is None else self._normalise(i, trace, norm, z)
            if activation.name == "softmax":
                builder.op("softmax", z=u, y=y)
            elif layer.pieces > 1:
                trace.u = u
                builder.op("maxout", z=u, y=y)
            else:
                trace.saved = u if activation._row.needs == "x" else y
                builder.op("activation", x=u, y=y, **formula(activation))
            if mask:
                builder.op("dropout", x=y, y=y, **mask)
        if layer.residual:
            trace.y = builder.buffer(f"sum{tag}", BATCH_ROWS, layer.n_out) if self.training else y
            builder.op("add", x=x, y=y, sum=trace.y)
        return trace.y

    def _product(self, i: int, **attributes: Any) -> None:
        """A dense op; with ``int8`` the rows as integers first, and then a product of integers."""
        builder = self.builder
        if not self.int8:
            builder.op("dense", **attributes)
            return
        x, q, scale = attributes["x"], f"q{i}", f"x_scale{i}"
        builder.buffer(q, BATCH_ROWS, -(-builder.columns(x) // 2))
        builder.buffer(scale, BATCH_ROWS, 1)
        builder.op("quantize", x=x, q=q, scale=scale)
        kept = {name: value for name, value in attributes.items() if name not in ("x", "z", "w")}
        builder.op("dense_int8", q=q, x_scale=scale, w_scale=f"w_scale{i}", depth=builder.columns(x), **kept)

    def _normalise(self, i: int, trace: Trace, norm: Any, z: str) -> str:
        builder, tag, n = self.builder, f"{self.branch}{i}", trace.layer.n_units
        u = builder.buffer(f"u{tag}", BATCH_ROWS, n) if self.training else z
        trace.z = z
        common = {"x": z, "y": u, "gamma": f"gamma{i}", "beta": f"beta{i}", "epsilon": norm.epsilon}
        if isinstance(norm, options.BatchNorm):
            trace.statistics = {name: builder.buffer(f"batch_{name}{tag}", 1, n, ARENA, FLOAT64)
                                for name in ("mean", "deviation")}  # fmt: skip
            running = {} if self.branch else {"running_mean": f"mean{i}", "running_var": f"var{i}"}
            builder.op("batch_norm", **common, **trace.statistics, **running, momentum=norm.momentum)
        else:
            if self.training:
                trace.statistics = {"statistics": builder.buffer(f"statistics_{tag}", BATCH_ROWS, 2, ARENA, FLOAT64)}
            builder.op("layer_norm", **common, **trace.statistics)
        return u


class Backward:
    """Emits the backward pass of one or more forward passes through the same layers.

    ``on_output[i]``: functions (trace, dL/dy) that add the gradient of a penalty on layer i's output;
    ``after[i]``: functions to call when the gradient of layer i's weights is there.
    """

    def __init__(self, builder: PlanBuilder, layers: tuple[Layer, ...]):
        self.builder, self.layers = builder, layers
        self.written: set[str] = set()
        self.on_output: dict[int, list[Callable[[Trace, str], None]]] = {}
        self.after: dict[int, list[Callable[[], None]]] = {}

    def run(self, forward: Forward, delta: str, *, chained: bool) -> None:
        """From dL/dy of the last layer of ``forward`` (``chained``: dL/dz) to the gradients of all parameters."""
        builder, traces = self.builder, forward.traces
        main = not forward.branch
        for i in range(len(traces) - 1, -1, -1):
            trace, outer = traces[i], delta
            if not chained:
                for penalty in self.on_output.get(i, []) if main else []:
                    penalty(trace, delta)
                delta = self._to_preactivation(forward, i, delta)
            common = {"dz": delta, "x": trace.x, **self._gradients(i)}
            if i == 0:
                builder.op("dense_grad", **common)
                self._finish(i, main)
                return
            before = traces[i - 1]
            dx = builder.buffer(f"delta{forward.branch}{i}", BATCH_ROWS, trace.layer.n_in)
            chained = before.plain and not trace.layer.residual and not (main and self.on_output.get(i - 1))
            chain = self._chain(forward, before) if chained else {}
            builder.op("dense_grad", dx=dx, **common, **chain)
            self._finish(i, main)
            if trace.layer.residual:
                builder.op("add", x=outer, y=dx, sum=dx)
            delta = dx

    def _finish(self, i: int, main: bool) -> None:
        for action in self.after.get(i, []) if main else []:
            action()

    def _gradients(self, i: int) -> dict[str, Any]:
        """Weights of layer i and where their gradients go, added to what a tied layer or branch has written before."""
        weights = weight_of(self.layers, i)
        dw, db = f"d{weights['w']}", f"db{i}"
        add = {"add": int(dw in self.written), "add_bias": int(db in self.written)}
        if self._taken_out(i):
            self.written.add(dw)
            return {**weights, "dw": dw, **add}
        self.written |= {dw, db}
        return {**weights, "dw": dw, "db": db, **add}

    def _taken_out(self, i: int) -> bool:
        """Whether a batch normalisation takes the bias of layer i out again: its own, or that of the layer behind.

        The gradient is then 0, and what sums over a batch would leave of it is rounding, of which rules that divide by
        its size make steps as large as any.
        """
        layer = self.layers[i]
        if isinstance(layer.norm, options.BatchNorm):
            return True
        behind = self.layers[i + 1] if i + 1 < len(self.layers) else layer
        linear = layer.norm is None and layer.pieces == 1 and _identity(layer.activation) and not layer.dropout
        return linear and isinstance(behind.norm, options.BatchNorm) and not (behind.residual or self.on_output.get(i))

    @staticmethod
    def _chain(forward: Forward, trace: Trace) -> dict[str, Any]:
        layer = trace.layer
        mask = {"rows": forward.rows, "stream": trace.stream, "rate": layer.dropout} if layer.dropout else {}
        return {"saved": trace.saved, **mask, **formula(layer.activation)}

    def _to_preactivation(self, forward: Forward, i: int, dy: str) -> str:
        """dL/dz from dL/dy of layer i: activation, dropout, normalisation. dL/dy is kept for a residual layer."""
        builder, trace = self.builder, forward.traces[i]
        layer, tag = trace.layer, f"{forward.branch}{i}"
        keep = layer.residual and i > 0
        du = dy
        if layer.pieces > 1:
            if layer.dropout:
                du = builder.buffer(f"dropped{tag}", BATCH_ROWS, layer.n_out) if keep else dy
                builder.op("dropout", x=dy, y=du, rows=forward.rows, stream=trace.stream, rate=layer.dropout)
            dz = builder.buffer(f"du{tag}", BATCH_ROWS, layer.n_units)
            builder.op("maxout_grad", dy=du, z=trace.u, dz=dz)
            du = dz
        elif layer.activation.name != "identity" or layer.dropout:
            du = builder.buffer(f"du{tag}", BATCH_ROWS, layer.n_out) if keep else dy
            builder.op("activation_grad", dy=dy, dz=du, **self._chain(forward, trace))
        if layer.norm is None:
            return du
        dz = builder.buffer(f"dz{tag}", BATCH_ROWS, layer.n_units) if keep and du == dy else du
        names = (f"dgamma{i}", f"dbeta{i}")
        add = int(names[0] in self.written)
        self.written |= set(names)
        kind = "batch_norm_grad" if isinstance(layer.norm, options.BatchNorm) else "layer_norm_grad"
        builder.op(kind, dy=du, x=trace.z, gamma=f"gamma{i}", dx=dz, dgamma=names[0], dbeta=names[1], add=add,
                   **trace.statistics)  # fmt: skip
        return dz


def pack(builder: PlanBuilder, layers: tuple[Layer, ...], chosen: range, int8: bool = False) -> dict[int, str]:
    """Weights of the chosen layers in the backend's own layout, a fixed normalisation folded in.

    int8 : as 8-bit integers with a scale per unit; of layers with weights of their own
    """
    names = {}
    for i in chosen:
        layer, weights = layers[i], weight_of(layers, i)
        if isinstance(layer.norm, options.BatchNorm):
            shape = (layer.n_units, layer.n_in)
            folded = {"folded_w": builder.buffer(f"folded_w{i}", *(shape if layer.tied is None else shape[::-1])),
                      "folded_b": builder.buffer(f"folded_b{i}", 1, layer.n_units)}  # fmt: skip
            own = {name: f"{name}{i}" for name in ("b", "gamma", "beta", "mean", "var")}
            builder.op("fold_norm", PREPARE, **weights, **own, **folded, epsilon=layer.norm.epsilon)
            weights["w"] = folded["folded_w"]
        rows = -(-layer.n_units // PACK_ROUND) * PACK_ROUND
        if int8:
            if layer.n_in > INT8_DEPTH:
                raise ValueError(
                    f"layer {i} has {layer.n_in} inputs; sums of 8-bit products are exact up to {INT8_DEPTH}; use "
                    "precision='float32'"
                )
            names[i] = builder.buffer(f"packed{i}", rows, 1 + -(-layer.n_in // 2))
            scale = builder.buffer(f"w_scale{i}", 1, layer.n_units)
            builder.op("pack_int8", PREPARE, w=weights["w"], packed=names[i], scale=scale)
            continue
        names[i] = builder.buffer(f"packed{i}", rows, packed_depth(layer.n_in))
        builder.op("pack", PREPARE, packed=names[i], **weights)
    return names
