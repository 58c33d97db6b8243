"""The kinds of op record: which buffers, integers and floats each one takes.

One table for all backends; ``csrc/schema.h`` is generated from it. Letters: m batch rows, k inputs and n units of a
layer, p features. A slot in brackets may be empty (buffer -1). An op that couples the rows of a batch is not
row-local: only row-local ops may run on blocks of rows independently.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

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
        "transform_input",
        ("x", "y", "target"),
        ("transform",),
        ("missing",),
        doc=(
            "[y] (m,p) = 0 where x is missing, else x (transform 0) or log1p(x) (1); [target] (m,p) = NaN where x is "
            "missing, else x. Missing: NaN, or equal to `missing`. y may be x"
        ),
    ),
    OpKind(
        "noise",
        ("x", "y", "rows"),
        ("kind", "stream"),
        ("amount", "low", "high"),
        doc="y (m,p) <- corrupted x; kind 0 gaussian(amount = std), 1 masking, 2 salt and pepper, 3 swap (rate)",
    ),
    OpKind("dropout", ("x", "y", "rows"), ("stream",), ("rate",), doc="y (m,p) <- inverted dropout of x"),
    OpKind(
        "take",
        ("x", "rows"),
        ("source",),
        doc="x (m,p) <- the rows of source that ``rows`` names",
    ),
    OpKind(
        "neighbour",
        ("rows", "out", "coefficient"),
        ("source", "stream"),
        doc=(
            "out (m,1) int64 <- a neighbour of each row in the CSR graph ``source``, drawn by edge weight; "
            "coefficient (m,1) <- half the row's sum of weights; a row without neighbours is its own, with 0"
        ),
    ),
    OpKind(
        "pack",
        ("w", "packed"),
        ("transposed", "bf16"),
        doc="packed <- w (n,k) in the backend's own layout for repeated products; transposed: w is (k,n)",
    ),
    OpKind(
        "fold_norm",
        ("w", "b", "gamma", "beta", "mean", "var", "folded_w", "folded_b"),
        ("transposed",),
        ("epsilon",),
        doc="folded_w, folded_b <- weights that give batch_norm(x wT + b) with fixed mean, var; transposed: w is (k,n)",
    ),
    OpKind(
        "dense",
        ("x", "w", "b", "y", "z", "packed", "rows"),
        ("activation", "stream", "transposed", "bf16"),
        ("p0", "p1", "rate"),
        doc=(
            "[z] = x wT + [b]; y = dropout(a(z)); x (m,k) w (n,k) b (n) y,z (m,n). [packed]: w packed earlier; "
            "transposed: w is (k,n), shared with another layer; bf16: operands of products are rounded to bfloat16"
        ),
    ),
    OpKind(
        "pack_int8",
        ("w", "packed", "scale"),
        doc=(
            "packed <- w (n,k) as integers in the backend's own layout, scale (1,n) <- max |w_j| / 127; packed (n to a "
            "multiple of 64, 1 + k / 2 rounded up)"
        ),
    ),
    OpKind(
        "quantize",
        ("x", "q", "scale"),
        doc=(
            "q <- round(x_r 127 / max |x_r|) in the layout that dense_int8 reads, q (m, k / 2 rounded up); "
            "scale (m,1) <- max |x_r| / 127"
        ),
    ),
    OpKind(
        "dense_int8",
        ("q", "x_scale", "packed", "w_scale", "b", "y"),
        ("activation", "depth"),
        ("p0", "p1"),
        doc="y (m,n) = a((q wT) x_scale w_scale + b), the sums over depth = k being exact integers",
    ),
    OpKind("store_half", ("x", "out"), doc="out (m,n) float16 <- x, rounded to nearest even"),
    OpKind(
        "store_int8",
        ("x", "out", "scale"),
        doc="out (m,n) int8 <- round(x_r 127 / max |x_r|), scale (m,1) <- max |x_r| / 127",
    ),
    OpKind("add", ("x", "y", "sum"), doc="sum (m,n) = x + y; sum may be y"),
    OpKind("maxout", ("z", "y"), doc="y[r,j] = max_q z[r, q n + j]; z (m, k n), y (m,n)"),
    OpKind(
        "maxout_grad", ("dy", "z", "dz"), doc="dz[r, q n + j] = dy[r,j] at the lowest q that is the largest, else 0"
    ),
    OpKind(
        "batch_norm",
        ("x", "gamma", "beta", "y", "mean", "deviation", "running_mean", "running_var"),
        (),
        ("momentum", "epsilon"),
        row_local=False,
        doc=(
            "y = (x - mean) / deviation gamma + beta; mean, deviation (1,n) float64 <- the batch's mean and "
            "sqrt(variance + epsilon); [running_mean, running_var] <- (1 - momentum) old + momentum batch (unbiased)"
        ),
    ),
    OpKind(
        "batch_norm_grad",
        ("dy", "x", "gamma", "mean", "deviation", "dx", "dgamma", "dbeta"),
        ("add",),
        row_local=False,
        doc="gradients of batch_norm; add: dgamma, dbeta are added to; dx may be dy",
    ),
    OpKind(
        "layer_norm",
        ("x", "gamma", "beta", "y", "statistics"),
        (),
        ("epsilon",),
        doc="y = (x - mean_r) / deviation_r gamma + beta by rows; [statistics] (m,2) float64 <- mean_r, deviation_r",
    ),
    OpKind(
        "layer_norm_grad",
        ("dy", "x", "gamma", "statistics", "dx", "dgamma", "dbeta"),
        ("add",),
        doc="gradients of layer_norm; add: dgamma, dbeta are added to; dx may be dy",
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
        ("loss", "value", "masked", "accumulate"),
        ("p0", "p1", "scale"),
        doc=(
            "[row_value][r] = v[r] = scale sum_j l(y,t), float64 (accumulate: +=); value += sum_r weight[r] v[r] / m; "
            "[dy] = weight[r] scale l'(y,t) / m; dy may be y. loss: catalogue index, -1 multinomial with logits, "
            "-2 cosine. masked 1: entries with t = NaN count as nothing; 2: and v, dy are divided by the number of the "
            "others in the row"
        ),
    ),
    OpKind("size_factor", ("target", "size"), doc="size (m,1) = log of the mean of the row's targets that are not NaN"),
    OpKind(
        "likelihood",
        ("y", "target", "weight", "size", "dy", "row_value"),
        ("likelihood", "value", "masked", "accumulate"),
        ("p0", "p1", "scale"),
        doc=(
            "as loss, for target (m,n) and y, dy (m,h n): h outputs per feature in blocks of n columns; [size] (m,1): "
            "logarithm of each row's size factor"
        ),
    ),
    OpKind(
        "distribution",
        ("y", "size", "out"),
        ("likelihood", "output"),
        doc="out (m,n) = the likelihood's parameter from one output y (m,n); may be in place",
    ),
    OpKind(
        "dense_grad",
        ("dz", "x", "w", "dx", "dw", "db", "saved", "rows"),
        ("activation", "stream", "transposed", "add", "add_bias", "bf16", "fused"),
        ("p0", "p1", "rate"),
        doc=(
            "[dw] (n,k) = dzT x, [db] (n) = sum_r dz, [dx] (m,k) = dropout'(dz w) a'(saved): activation, saved, stream "
            "and rate are those of the layer that made x (identity, empty, 0 where there is none to fuse). "
            "transposed: w, dw are (k,n); add, add_bias: dw, db are added to; bf16: as in dense, db of dz as it is, or "
            "rounded as for dw; fused: a backend may apply the plan's update to w at once and leave dw unwritten, when "
            "it runs both phases"
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
        "pair",
        ("h", "h2", "coefficient", "dh", "dh2", "row_value"),
        ("value",),
        ("strength",),
        doc=(
            "row_value[r] = strength [coefficient[r]] |h_r - h2_r|^2; value += mean over rows; dh += its gradient / m, "
            "dh2 = minus that"
        ),
    ),
    OpKind(
        "contractive",
        ("h", "dh", "w", "factor"),
        ("activation", "value"),
        ("p0", "p1", "strength"),
        doc=(
            "value += strength mean_r sum_j a'(r,j)^2 |w_j|^2; dh += its gradient / a' / m; factor (1,n) float64 <- "
            "2 strength mean_r a'(r,j)^2, for scale_rows. h (m,n): y, or z, as the catalogue says"
        ),
    ),
    OpKind("scale_rows", ("w", "factor", "dw"), doc="dw[j,:] += factor[j] w[j,:]"),
    OpKind(
        "decorrelation",
        ("h", "dh", "mean", "centred", "covariance", "product"),
        ("value",),
        ("strength",),
        row_local=False,
        doc=(
            "value += strength / 2 sum_{i != j} C_ij^2, C (n,n) the batch's covariance (over m); dh += its gradient; "
            "mean (1,n) float64, centred and product (m,n), covariance (n,n) are working memory"
        ),
    ),
    OpKind(
        "orthogonality",
        ("w", "dw", "gram", "product"),
        ("columns", "value"),
        ("strength",),
        row_local=False,
        doc=(
            "value += strength / 2 |w wT - I|^2 (columns: |wT w - I|^2); dw += its gradient; gram (n,n) (columns: "
            "(k,k)) and product (n,k) are working memory"
        ),
    ),
    OpKind(
        "projector",
        ("w", "v", "dw", "coordinates", "product"),
        ("value",),
        ("strength",),
        row_local=False,
        doc=(
            "value += strength / 2 |w (I - vT v)|^2, v (q,k) with orthonormal rows; dw += its gradient; "
            "coordinates (n,q), product (n,k) are working memory"
        ),
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
            "3: max(w, 0); 4: rows to norm 1 (a row of zeros stays)"
        ),
    ),
    # ---- codes of sparse autoencoders. A code is (val, idx, count): val (m, c s) real, idx (m, c s) int32 and count
    # (m, c) int32 hold c segments of up to s entries a row, idx ascending within a segment; only the first count[r, q]
    # entries of segment q mean anything. n latents; w (n,p): one latent, one row.
    OpKind("centre", ("x", "b", "y"), (), ("scale",), doc="y (m,p) = scale x - [b]; y may be x"),
    OpKind(
        "standardize",
        ("x", "y", "statistics"),
        (),
        ("epsilon",),
        doc=(
            "y = (x - mean_r) / deviation_r by rows; [statistics] (m,2) float64 <- mean_r, deviation_r = unbiased "
            "deviation + epsilon (NaN where it overflows) (p = 1: epsilon); y may be x"
        ),
    ),
    OpKind("exponential", ("x", "y"), doc="y = exp(x), both (1,n) parameters"),
    OpKind("restore", ("y", "statistics", "out"), doc="out = y deviation_r + mean_r; out may be y"),
    OpKind(
        "pack_encoder",
        ("w", "packed"),
        ("bf16",),
        doc="packed <- what a backend wants to know of w (n,p), in its own layout for encode; bf16: as there",
    ),
    OpKind(
        "encode",
        ("x", "w", "b", "threshold", "val", "pre", "idx", "count", "packed", "subset", "n_subset"),
        ("kind", "k", "k_scalar", "path", "overflow", "bf16"),
        ("margin",),
        doc=(
            "z = x wT + [b], never stored; a code of one segment. kind 0 topk: the k largest z (ties: lowest index), "
            "val = max(z, 0); 1 abs_topk: the k largest |z|, val = z; 2 threshold: all z > t_j - margin, val = z "
            "where z > t_j, else 0; t = [threshold] (1,n) or (1,1), 0 without. [pre] <- z. k_scalar >= 0: k is "
            "scalars[step, k_scalar], at most `k`. [subset] (1,n) int32, n_subset (1,1) int32: only the first "
            "n_subset latents named there, ascending, take part (k is cut to their number). A row with more entries "
            "than fit has its true number as count, and overflow >= 0: values[step, overflow] = inf. path: 0 the "
            "backend's choice, 1 float32 products, 2 candidates by bfloat16 products, 3 by 8-bit products; results "
            "are the same bits. bf16: x and w are rounded to bfloat16 first, whatever the path. A row of x that is not "
            "finite: count -1"
        ),
    ),
    OpKind(
        "batch_topk",
        ("x", "w", "b", "val", "idx", "count", "threshold", "guess"),
        ("k", "k_scalar", "overflow", "bf16", "decay_scalar"),
        ("decay",),
        row_local=False,
        doc=(
            "a code of one segment: the floor(k m) largest of max(x wT + [b], 0) over the whole batch that are "
            "positive (ties: lowest row, then latent). [threshold] (1,1) <- the smallest of them if it was negative, "
            "else decay old + (1 - decay) that; unchanged without any. decay_scalar >= 0: the decay is scalars[step, "
            "decay_scalar], at most `decay`. guess (1,1): carried from step to step to save "
            "work, changes no result. k, k_scalar, overflow, bf16: as in encode"
        ),
    ),
    OpKind(
        "narrow",
        ("val", "idx", "count", "val_out", "idx_out", "count_out"),
        ("k", "k_scalar", "magnitude"),
        doc="the k entries of each row with the largest val (magnitude: |val|), ties: lowest index; one segment each",
    ),
    OpKind(
        "gated_code",
        ("pre", "idx", "count", "r", "b_gate", "b_mag", "val"),
        doc="val = max(exp(r_j) (pre - b_gate_j) + b_mag_j, 0) for the entries of a threshold code whose pre > 0",
    ),
    OpKind(
        "decode",
        ("val", "idx", "count", "w", "b", "y", "groups"),
        doc=(
            "y (m,p) = [b] + sum over the row's entries of val w[idx], by ascending entries. [groups] (1,G) int32 "
            "ascending ends of groups of latents: y (m, G p), block g the sum over latents < groups[g]"
        ),
    ),
    OpKind(
        "squared_error",
        ("y", "target", "base", "weight", "n_dead", "dy"),
        ("value", "variance", "norm", "k_aux"),
        ("scale",),
        row_local=False,
        doc=(
            "t = target - [base]; value += scale c sum_r [weight_r] |y - t|^2 / (m V); dy <- its gradient in y. V = 1 "
            "(norm 0), mean_r |t - mean t|^2 (1), or that of target (2); all is 0 where V is 0. c = min(n_dead / "
            "k_aux, 1) where k_aux > 0, else 1. variance: column that mean_r |t - mean t|^2 is added to. dy may be y"
        ),
    ),
    OpKind(
        "suffix_sum",
        ("x",),
        ("blocks",),
        doc="x (m, blocks p): block g += block g + 1, from the last but one down to 0",
    ),
    OpKind(
        "code_grad",
        ("dy", "idx", "count", "w", "dval", "groups"),
        doc="dval = dy[r, block of j] . w[j], j = idx; [groups]: dy (m, G p), block of j the first with j < groups[g]",
    ),
    OpKind(
        "code_penalty",
        ("val", "idx", "count", "w", "dval"),
        ("value", "scalar", "spaces"),
        ("strength",),
        doc=(
            "s = strength scalars[step, scalar] (scalar < 0: strength); value += s sum val q_j / m, dval += s q_j / m "
            "where val > 0; q_j = |w_j|, over `spaces` > 1 equal blocks of columns the sum of their norms; 1 without w"
        ),
    ),
    OpKind(
        "relu_grad",
        ("val", "count", "dval"),
        doc="dval = 0 where val <= 0",
    ),
    OpKind(
        "jumprelu_grad",
        ("pre", "val", "idx", "count", "threshold", "w", "dval", "dz", "dtheta"),
        ("value", "l0", "scalar", "penalty", "logarithm", "above"),
        ("bandwidth", "strength", "target", "p0"),
        row_local=False,
        doc=(
            "entries of a threshold code with margin bandwidth / 2; t_j = threshold (1,n), or its exponential "
            "(logarithm). s as in code_penalty; near: |pre - t| < bandwidth / 2. penalty 0 step: s sum [pre > t] / m; "
            "1 tanh: s sum tanh(p0 val [|w_j|]) / m; 2 quadratic: s (L0 / target - 1)^2, L0 = sum [pre > t] / m; 3 "
            "row_quadratic: s mean_r (L0_r / target - 1)^2, L0_r of row r alone. dz = (dval + penalty's) [pre > t]; "
            "dtheta = -(t / bandwidth) near (dval + penalty's in val) - (1 / bandwidth) near [pre > t, where above] "
            "(penalty's in the step), times t with logarithm. value += penalty; l0: column += L0. dz may be dval"
        ),
    ),
    OpKind(
        "gated_grad",
        ("pre", "val", "idx", "count", "r", "b_gate", "w", "dval", "dgate", "dz", "dmag", "dr"),
        ("value", "scalar"),
        ("strength",),
        doc=(
            "q = s [|w_j|] / m, s as in code_penalty; value += sum q pre; dgate += q; dmag = dval [val > 0]; dr = "
            "dmag exp(r_j) (pre - b_gate_j); dz = dgate + dmag exp(r_j). dgate comes in as the gradient in pre of the "
            "gate's own reconstruction; dmag may be dval"
        ),
    ),
    OpKind(
        "by_latent",
        ("idx", "count", "start", "entry"),
        ("capacity",),
        row_local=False,
        doc=(
            "start (1, n+1) int64, entry (m, c s) int64: entry[start[j] : start[j+1]] are the positions r (c s) + q s "
            "+ i of latent j's entries, ascending. capacity: s"
        ),
    ),
    OpKind(
        "latent_grad",
        ("coef", "start", "entry", "u", "w", "dw", "db", "factor", "groups"),
        ("capacity", "unit", "fused"),
        row_local=False,
        doc=(
            "[dw] (n,p) = sum over latent j's entries of coef u[r, block], [db] (1,n) = sum of coef; coef (m, c s). "
            "block 0 where u is (m,p); else u (m, B p): the first segment's block is j's group ([groups], as in "
            "code_grad; 0 without), segment q's is B - c + q. [factor] (S,n) float64: dw_j += factor_sj w_j in the "
            "s-th of S equal blocks of columns. unit: then dw_j -= (dw_j . w_j) w_j / |w_j|^2. fused: a backend may "
            "update w at once, renormalising rows to 1 where unit, and leave dw unwritten, when it runs both phases; "
            "w (n,p)"
        ),
    ),
    OpKind(
        "latent_sum",
        ("coef", "start", "entry", "sum"),
        ("add",),
        row_local=False,
        doc="sum (1,n) = sum over latent j's entries of coef; add: added to",
    ),
    OpKind(
        "norm_factor",
        ("val", "start", "entry", "w", "factor"),
        ("scalar", "spaces"),
        ("strength", "p0"),
        row_local=False,
        doc=(
            "factor (S,n) float64 = s sum over latent j's entries of max(val, 0) / (m |w_j|), |w_j| over each of S = "
            "spaces (0: 1) equal blocks of columns: the part of code_penalty's gradient that goes through |w_j|; 0 "
            "where |w_j| is 0. p0 > 0: each val counts p0 (1 - tanh(p0 val |w_j|)^2) times, for jumprelu_grad's tanh"
        ),
    ),
    OpKind(
        "bias_grad",
        ("dy", "db"),
        ("add",),
        doc="db (1,p) = sum_r dy; add: added to",
    ),
    OpKind(
        "pre_bias_grad",
        ("db", "w", "dbias"),
        (),
        ("scale",),
        row_local=False,
        doc="dbias (1,p) -= scale sum_j db_j w_j: the gradient of a bias that was subtracted from the encoder's input",
    ),
    OpKind(
        "fired",
        ("val", "idx", "count", "since"),
        row_local=False,
        doc="since (1,n) int64 += m, or 0 for the latents of entries with val != 0",
    ),
    OpKind(
        "dead",
        ("since", "list", "n_dead"),
        ("limit",),
        row_local=False,
        doc="list (1,n) int32 <- the latents with since >= limit, ascending; n_dead (1,1) int32 <- their number",
    ),
    OpKind(
        "code_statistics",
        ("val", "count"),
        ("value",),
        doc="value += mean over rows of the number of entries with val != 0",
    ),
    OpKind(
        "average",
        ("w", "mean"),
        (),
        ("decay",),
        row_local=False,
        doc="mean = decay mean + (1 - decay) w, elementwise",
    ),
)

KIND = {kind.name: kind for kind in OP_KINDS}
KIND_INDEX = {kind.name: i for i, kind in enumerate(OP_KINDS)}
MAX_SLOTS = max(len(kind.slots) for kind in OP_KINDS)
MAX_INTS = max(len(kind.ints) for kind in OP_KINDS)
MAX_FLOATS = max(len(kind.floats) for kind in OP_KINDS)

NOISE_KINDS = ("gaussian", "masking", "salt_and_pepper", "swap")
CLIP_MODES = ("value", "norm")
PROJECT_KINDS = ("prox", "max_norm", "range", "non_negative", "unit")
MASK_MODES = ("none", "sum", "mean")  # of a loss's entries with target NaN
CODE_KINDS = ("topk", "abs_topk", "threshold")
ENCODE_PATHS = ("auto", "float32", "bfloat16", "int8")
JUMP_PENALTIES = ("step", "tanh", "quadratic", "row_quadratic")
ERROR_NORMS = ("none", "residual", "target")  # variance that a squared error is divided by
INPUT_TRANSFORMS = ("none", "log1p")
# stored element types of sources, in the order of their codes; bfloat16 is ml_dtypes', known by name
SOURCE_DTYPES = (
    "float32", "float64", "float16", "bfloat16",
    "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
)  # fmt: skip
SOURCE_CODES = {name: code for code, name in enumerate(SOURCE_DTYPES)} | {"bool": SOURCE_DTYPES.index("uint8")}


@cache  # a dtype's name is made anew each time that it is asked for
def source_code(dtype: np.dtype) -> int | None:
    """Code of a stored element type; None for what `gather` cannot read."""
    return SOURCE_CODES.get(dtype.name)


MULTINOMIAL, COSINE = -1, -2  # losses of a whole row
SMALLEST_SIZE = 1e-30  # a row's mean is cut here before its logarithm is taken


# columns of pack_encoder's buffer of bytes (rows: n to a multiple of 64): bfloat16, 8-bit integers, their upper six
# bits and their lower two, and facts per row
def pack_columns(p: int) -> int:
    lines = -(-p // 64)
    return 3 * lines * 64 + lines * 48 + -(-p // 256) * 64 + 64


INT8_DEPTH = (2**31 - 1) // (127 * 128)  # longest sum of 8-bit products that fits 32 bits, of shifted ones too

# Where a buffer lives. From EXTERNAL on: arrays given by the caller; those with a row per batch row are addressed by
# the position of the row in the whole run, not in the batch.
ARENA, THETA, GRAD, STATE, EXTERNAL = range(5)
BATCH_ROWS = -1  # "rows" of a buffer with one row per row of the batch
REAL, FLOAT64, INT64, FLOAT16, INT8, INT32 = range(6)  # dtypes of buffers; REAL is the plan's dtype
SHUFFLE_STREAM = 255  # Philox streams: 0.. are given out by the planner
