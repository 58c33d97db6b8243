"""Records of penalties: on activities, on pairs of codes, on weights."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..spec import options
from ..spec.network import Network, exact_contraction
from . import schema
from .dense import Backward, Forward, Trace, formula
from .losses import transform_input
from .plan import PlanBuilder
from .schema import ARENA, BATCH_ROWS, FLOAT64, INT64, THETA


def penalty_attributes(penalty: options.PenaltyOption) -> dict[str, Any]:
    """Record attributes of a catalogue penalty."""
    return {"penalty": penalty._index} | {f"p{i}": v for i, v in enumerate(options.values(penalty))}


class Penalties:
    """Emits the penalties of a network around its forward and backward pass; all add to one value."""

    def __init__(self, builder: PlanBuilder, network: Network, value: int):
        self.builder, self.network, self.value = builder, network, value
        self.layers, self.code = network.layers, len(network.encoder) - 1
        self.branches: list[tuple[Forward, str]] = []
        self.count = 0

    def _name(self, what: str) -> str:
        self.count += 1
        return f"{what}_{self.count}"

    def register(self, backward: Backward, forward: Forward, x: str) -> None:
        """Makes second passes through the encoder, and tells the backward pass what to add where."""
        for placed in self.network.penalties:
            option = placed.option
            for i in placed.layers:
                hooks = backward.on_output.setdefault(i, [])
                match option:
                    case options.KLSparsity() | options.Activity() | options.ActivityL1() | options.Decorrelation():
                        hooks.append(partial(self._activity, option))
                    case options.Contractive():
                        if option.method != "sampled" and exact_contraction(self.layers, self.code + 1):
                            self._contraction(option, backward, hooks)
                        else:
                            self._perturbed(option, forward, hooks, x)
                    case options.Laplacian():
                        self._neighbours(option, forward, hooks)

    def second_passes(self, backward: Backward) -> None:
        """Backward passes of the second passes through the encoder."""
        for forward, delta in self.branches:
            backward.run(forward, delta, chained=False)

    # ---- activities ---

    def _activity(self, penalty: Any, trace: Trace, dh: str) -> None:
        builder, common = self.builder, {"h": trace.y, "dh": dh, "value": self.value}
        columns = builder.columns(trace.y)
        if isinstance(penalty, options.KLSparsity):
            mean = builder.buffer(self._name("mean"), 1, columns, ARENA, FLOAT64)
            builder.op("kl_sparsity", **common, mean=mean, rho=penalty.rho, weight=penalty.weight)
        elif isinstance(penalty, options.Decorrelation):
            builder.op("decorrelation", **common, strength=penalty.strength,
                       mean=builder.buffer(self._name("mean"), 1, columns, ARENA, FLOAT64),
                       centred=builder.buffer(self._name("centred"), BATCH_ROWS, columns),
                       covariance=builder.buffer(self._name("covariance"), columns, columns),
                       product=builder.buffer(self._name("product"), BATCH_ROWS, columns))  # fmt: skip
        else:
            inner = options.PENALTIES["l1"](penalty.strength) if isinstance(penalty, options.ActivityL1) else (
                options.penalty(penalty.penalty))  # fmt: skip
            builder.op("activity", **common, row_value=self._row_value(), **penalty_attributes(inner))

    def _row_value(self) -> str:
        return self.builder.buffer(self._name("row_value"), BATCH_ROWS, 1, ARENA, FLOAT64)

    # ---- the encoder's Jacobian ---

    def _contraction(self, penalty: options.Contractive, backward: Backward, hooks: list) -> None:
        builder, first = self.builder, self.layers[0]
        factor = builder.buffer(self._name("factor"), 1, first.n_out, ARENA, FLOAT64)

        def contract(trace: Trace, dh: str) -> None:
            builder.op("contractive", h=trace.saved, dh=dh, w="w0", factor=factor, value=self.value,
                       strength=penalty.strength, **formula(first.activation))  # fmt: skip

        hooks.append(contract)
        backward.after.setdefault(0, []).append(lambda: builder.op("scale_rows", w="w0", factor=factor, dw="dw0"))

    def _perturbed(self, penalty: options.Contractive, forward: Forward, hooks: list, x: str) -> None:
        builder = self.builder
        near = builder.buffer(self._name("perturbed"), BATCH_ROWS, self.network.n_features)
        builder.op("noise", x=x, y=near, rows="rows", kind=schema.NOISE_KINDS.index("gaussian"),
                   stream=builder.stream(), amount=penalty.std)  # fmt: skip
        self._pair(forward, hooks, near, "rows", penalty.strength / penalty.std**2)

    # ---- pairs of rows ---

    def _neighbours(self, penalty: options.Laplacian, forward: Forward, hooks: list) -> None:
        builder = self.builder
        ids = builder.buffer(self._name("neighbours"), BATCH_ROWS, 1, ARENA, INT64)
        coefficient = builder.buffer(self._name("coefficient"), BATCH_ROWS, 1)
        near = builder.buffer(self._name("neighbour"), BATCH_ROWS, self.network.n_features)
        builder.op("neighbour", rows="rows", out=ids, coefficient=coefficient, source=self.network.graph_source,
                   stream=builder.stream())  # fmt: skip
        builder.op("take", x=near, rows=ids, source=0)
        near, _ = transform_input(builder, self.network, near, target_too=False)
        self._pair(forward, hooks, near, ids, penalty.strength, coefficient)

    def _pair(self, forward: Forward, hooks: list, x: str, rows: str, strength: float, coefficient=None) -> None:
        """A second pass of the encoder over x, and the squared distance of the codes."""
        builder = self.builder
        second = Forward(builder, self.layers, training=True, branch=self._name("branch") + "_", rows=rows,
                         streams=forward.streams)  # fmt: skip
        h = x
        for i in range(self.code + 1):
            h = second.layer(i, h)
        delta = builder.buffer(self._name("delta"), BATCH_ROWS, builder.columns(h))
        row_value = self._row_value()
        hooks.append(lambda trace, dh: builder.op(
            "pair", h=trace.y, h2=h, coefficient=coefficient, dh=dh, dh2=delta, row_value=row_value, value=self.value,
            strength=strength))  # fmt: skip
        self.branches.append((second, delta))

    # ---- weights ---

    def on_weights(self) -> None:
        """Penalties of the weights themselves; a tied layer's are its owner's."""
        builder = self.builder
        for placed in self.network.penalties:
            for i in placed.layers:
                layer = self.layers[i]
                if layer.tied is not None:
                    continue
                common = {"w": f"w{i}", "dw": f"dw{i}", "value": self.value}
                match placed.option:
                    case options.PenaltyOption():
                        builder.op("weight_penalty", **common, **penalty_attributes(placed.option))
                    case options.Orthogonality(strength=strength):
                        columns = layer.n_units > layer.n_in
                        side = layer.n_in if columns else layer.n_units
                        builder.op("orthogonality", **common, strength=strength, columns=columns,
                                   gram=builder.buffer(self._name("gram"), side, side),
                                   product=builder.buffer(self._name("product"), layer.n_units, layer.n_in)
                                   )  # fmt: skip
                    case options.SVDProjector(strength=strength):
                        basis = builder.buffer("basis", self.network.n_directions, layer.n_in, THETA)
                        builder.op("projector", **common, strength=strength, v=basis,
                                   coordinates=builder.buffer(self._name("coordinates"), layer.n_units,
                                                              self.network.n_directions),
                                   product=builder.buffer(self._name("product"), layer.n_units, layer.n_in)
                                   )  # fmt: skip
