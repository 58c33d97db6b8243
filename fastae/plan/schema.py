"""The kinds of op record: which buffers, integers and floats each one takes.

One table for all backends; ``csrc/schema.h`` is generated from it. Letters: m batch rows, k inputs and n units of a
layer, p features. A slot in brackets may be empty (buffer -1). An op that couples the rows of a batch is not
row-local: only row-local ops may run on blocks of rows independently.
"""

from __future__ import annotations

from dataclasses import dataclass

PREPARE, GRADIENT, UPDATE = 1, 2, 4
PHASES = {"prepare": PREPARE, "gradient": GRADIENT, "update": UPDATE}


@dataclass(frozen=True)
class OpKind:
    """name, slots (buffers), ints and floats in record order, and whether rows of a batch stay independent."""

    name: str
    slots: tuple[str, ...]
    ints: tuple[str, ...] = ()
    floats: tuple[str, ...] = ()
    row_local: bool = True
    doc: str = ""


# p0, p1: parameters of the catalogue formula. stream: Philox stream. value: column of the run's `values`, -1 for none.
OP_KINDS: tuple[OpKind, ...] = (
    OpKind(
        "gather",
        ("x", "weight", "rows"),
        ("source",),
        doc="x (m,p) <- rows of source; [weight] (m,1) <- sample weights; [rows] (m,1) int64 <- original row ids",
    ),
    OpKind(
        "noise",
        ("x", "y", "rows"),
        ("kind", "stream"),
        ("amount", "low", "high"),
        doc="y (m,p) <- corrupted x; kind 0 gaussian(amount = std), 1 masking, 2 salt and pepper, 3 swap (rate)",
    ),
    OpKind("dropout", ("x", "y", "rows"), ("stream",), ("rate",), doc="y (m,p) <- inverted dropout of x"),
    OpKind("pack", ("w", "packed"), doc="packed <- w (n,k) in the backend's own layout for repeated products"),
    OpKind(
        "dense",
        ("x", "w", "b", "y", "z", "packed", "rows"),
        ("activation", "stream"),
        ("p0", "p1", "rate"),
        doc="[z] = x wT + [b]; y = dropout(a(z)); x (m,k) w (n,k) b (n) y,z (m,n). [packed]: w packed earlier",
    ),
    OpKind("activation", ("x", "y"), ("activation",), ("p0", "p1"), doc="y (m,n) <- a(x); may be in place"),
    OpKind(
        "activation_grad",
        ("dy", "saved", "dz", "rows"),
        ("activation", "stream"),
        ("p0", "p1", "rate"),
        doc="dz = dropout'(dy) a'(saved), saved = y after dropout, or z, as the catalogue says; dz may be dy",
    ),
    OpKind("softmax", ("z", "y"), doc="y = exp(z) / sum exp(z) over the row; y may be z"),
    OpKind("softmax_grad", ("dy", "y", "dz"), doc="dz = y (dy - sum_j dy_j y_j); dz may be dy"),
    OpKind(
        "loss",
        ("y", "target", "weight", "dy", "row_value"),
        ("loss", "value"),
        ("p0", "p1", "scale"),
        doc=(
            "row_value[r] = scale * sum_j l(y,t), float64; value += sum_r weight[r] row_value[r] / m; "
            "[dy] = weight[r] scale l'(y,t) / m; dy may be y. loss: catalogue index, or -1 multinomial with logits"
        ),
    ),
    OpKind(
        "dense_grad",
        ("dz", "x", "w", "dx", "dw", "db", "saved", "rows"),
        ("activation", "stream"),
        ("p0", "p1", "rate"),
        doc=(
            "[dw] (n,k) = dzT x, [db] (n) = sum_r dz, [dx] (m,k) = dropout'(dz w) a'(saved): activation, saved, stream "
            "and rate are those of the layer that made x (identity, empty, 0 where there is none to fuse)"
        ),
    ),
    OpKind(
        "activity",
        ("h", "dh", "row_value"),
        ("penalty", "value"),
        ("p0", "p1"),
        doc="row_value[r] = sum_j R(h); value += mean over rows; dh += R'(h) / m",
    ),
    OpKind(
        "kl_sparsity",
        ("h", "dh", "mean"),
        ("value",),
        ("rho", "weight"),
        row_local=False,
        doc="mean (1,n) float64 <- batch mean of h; value += weight sum_j KL(rho||mean_j); dh += its gradient / m",
    ),
    OpKind(
        "weight_penalty",
        ("w", "dw"),
        ("penalty", "value"),
        ("p0", "p1"),
        row_local=False,
        doc="value += sum R(w); dw += smooth part of R'(w)",
    ),
    OpKind(
        "clip_gradient",
        ("g",),
        ("mode",),
        ("limit",),
        row_local=False,
        doc="mode 0: clamp each element to [-limit, limit]; mode 1: scale g by limit / norm where the norm exceeds it",
    ),
    OpKind(
        "update",
        ("w", "g", "s0", "s1", "s2"),
        ("rule", "scalar"),
        ("p0", "p1", "p2", "p3"),
        row_local=False,
        doc="one fused pass of the update rule in place; its step constants are scalars[step, scalar:]",
    ),
    OpKind(
        "project",
        ("w",),
        ("kind", "penalty", "scalar"),
        ("p0", "p1"),
        row_local=False,
        doc=(
            "kind 0: prox of the penalty, step = scalars[step, scalar]; 1: rows to norm <= p0; 2: clamp to [p0, p1]; "
            "3: max(w, 0)"
        ),
    ),
)

KIND = {kind.name: kind for kind in OP_KINDS}
KIND_INDEX = {kind.name: i for i, kind in enumerate(OP_KINDS)}
MAX_SLOTS = max(len(kind.slots) for kind in OP_KINDS)
MAX_INTS = max(len(kind.ints) for kind in OP_KINDS)
MAX_FLOATS = max(len(kind.floats) for kind in OP_KINDS)

NOISE_KINDS = ("gaussian", "masking", "salt_and_pepper", "swap")
CLIP_MODES = ("value", "norm")
PROJECT_KINDS = ("prox", "max_norm", "range", "non_negative")
MULTINOMIAL = -1

# Where a buffer lives. From EXTERNAL on: arrays given by the caller; those with a row per batch row are addressed by
# the position of the row in the whole run, not in the batch.
ARENA, THETA, GRAD, STATE, EXTERNAL = range(5)
BATCH_ROWS = -1  # "rows" of a buffer with one row per row of the batch
REAL, FLOAT64, INT64 = range(3)  # dtypes of buffers; REAL is the plan's dtype
SHUFFLE_STREAM = 255  # Philox streams: 0.. are given out by the planner
