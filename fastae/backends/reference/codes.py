"""Codes of sparse autoencoders: selection, decoding, gradients by latent. See `plan.schema` for the layout."""

import numpy as np

from ...plan import schema
from ..interpreter import operand
from .dense import gradient


def _double(v, name):
    return v[name].astype(np.float64)


def segments(v, val="val"):
    """Capacity of a segment, and a mask (m, c s) of the entries that mean something."""
    count = v["count"]
    width = v[val].shape[1] // count.shape[1]
    return width, (np.arange(width)[None, None, :] < count[:, :, None]).reshape(len(count), -1)


def active_k(step, op):
    """k of the present step."""
    if op.ints["k_scalar"] < 0:
        return op.ints["k"]
    return min(op.ints["k"], int(step.job.scalars[step.number, op.ints["k_scalar"]]))


def strength(step, op):
    s = op.floats["strength"]
    return s if op.ints["scalar"] < 0 else s * step.job.scalars[step.number, op.ints["scalar"]]


def centre(step, op, v):
    b = _double(v, "b") if "b" in v else 0.0
    v["y"][...] = op.floats["scale"] * _double(v, "x") - b


def standardize(step, op, v):
    x = _double(v, "x")
    mean = x.mean(axis=1, keepdims=True)
    spread = x.std(axis=1, ddof=1, keepdims=True) if x.shape[1] > 1 else np.zeros_like(mean)
    deviation = np.where(spread < 1e300, spread + op.floats["epsilon"], np.nan)  # overflow must not pass for zeros
    if "statistics" in v:
        v["statistics"][...] = np.concatenate([mean, deviation], axis=1)
    v["y"][...] = (x - mean) / deviation


def exponential(step, op, v):
    v["y"][...] = np.exp(_double(v, "x"))


def restore(step, op, v):
    mean, deviation = v["statistics"][:, :1], v["statistics"][:, 1:]
    v["out"][...] = _double(v, "y") * deviation + mean


def pack_encoder(step, op, v):
    """Nothing to do: encode takes weights as they lie."""


def pre_activations(op, v):
    z = operand(op, v["x"]).astype(np.float64) @ operand(op, v["w"]).astype(np.float64).T
    return z + v["b"] if "b" in v else z


def largest(score, k):
    """Indices (m, k), ascending, of the k largest of each row; ties: lowest index."""
    order = np.argsort(-score, axis=1, kind="stable")[:, :k]
    return np.sort(order, axis=1)


def report_overflow(step, op):
    if op.ints["overflow"] >= 0 and step.job.values is not None:
        step.job.values[step.number, op.ints["overflow"]] = np.inf


def store_ragged(step, op, v, taken, val, pre, latents):
    """Rows of a code from a mask of the entries taken; rows that do not fit get their true number only."""
    capacity = v["val"].shape[1]
    for r in range(len(taken)):
        chosen = np.flatnonzero(taken[r])
        v["count"][r, 0] = len(chosen)
        if len(chosen) > capacity:
            report_overflow(step, op)
        chosen = chosen[:capacity]
        n = len(chosen)
        v["idx"][r, :n], v["val"][r, :n] = latents[chosen], val[r, chosen]
        if "pre" in v:
            v["pre"][r, :n] = pre[r, chosen]


def encode(step, op, v):
    z = pre_activations(op, v)
    latents = np.arange(z.shape[1])
    if "subset" in v:
        latents = v["subset"][0, : v["n_subset"][0, 0]]
        z = z[:, latents]
    kind = schema.CODE_KINDS[op.ints["kind"]]
    if kind == "threshold":
        t = _double(v, "threshold") if "threshold" in v else np.zeros((1, 1))
        t = np.broadcast_to(t, (1, v["w"].shape[0]))[:, latents]
        store_ragged(step, op, v, z > t - op.floats["margin"], np.where(z > t, z, 0.0), z, latents)
    else:
        k = min(active_k(step, op), len(latents))
        position = largest(np.abs(z) if kind == "abs_topk" else z, k)
        chosen = np.take_along_axis(z, position, axis=1)
        v["idx"][:, :k], v["count"][...] = latents[position], k
        v["val"][:, :k] = chosen if kind == "abs_topk" else np.maximum(chosen, 0.0)
        if "pre" in v:
            v["pre"][:, :k] = chosen
    v["count"][~np.isfinite(v["x"]).all(axis=1)] = -1


def present_decay(step, op):
    """Of the average that the threshold of batch_topk is, at this step."""
    scalar, most = op.ints["decay_scalar"], op.floats["decay"]
    return most if scalar < 0 else min(most, float(step.job.scalars[step.number, scalar]))


def batch_topk(step, op, v):
    z = np.maximum(pre_activations(op, v), 0.0)
    limit = step.job.scalars[step.number, op.ints["k_scalar"]] if op.ints["k_scalar"] >= 0 else op.ints["k"]
    wanted = min(int(np.floor(min(limit, op.ints["k"]) * len(z))), z.size)
    order = np.argsort(-z, axis=None, kind="stable")[:wanted]
    order = order[z.reshape(-1)[order] > 0]
    taken = np.zeros(z.size, bool)
    taken[order] = True
    store_ragged(step, op, v, taken.reshape(z.shape), z, z, np.arange(z.shape[1]))
    if "threshold" in v and len(order):
        smallest, old, decay = z.reshape(-1)[order[-1]], v["threshold"][0, 0], present_decay(step, op)
        v["threshold"][0, 0] = smallest if old < 0 else decay * float(old) + (1 - decay) * smallest


def narrow(step, op, v):
    val, k = _double(v, "val"), active_k(step, op)
    score = np.abs(val) if op.ints["magnitude"] else val
    for r, n in enumerate(v["count"][:, 0]):
        chosen = largest(score[r : r + 1, : max(n, 0)], k)[0]
        count = len(chosen)
        v["val_out"][r, :count], v["idx_out"][r, :count] = val[r, chosen], v["idx"][r, chosen]
        v["count_out"][r, 0] = min(n, count)


def of_latent(v, name):
    """A per-latent array taken at each entry; entries without meaning take latent 0."""
    _, mask = segments(v, "idx")
    return v[name].astype(np.float64)[0][np.where(mask, v["idx"], 0)]


def gated_code(step, op, v):
    z = np.exp(of_latent(v, "r")) * (_double(v, "pre") - of_latent(v, "b_gate")) + of_latent(v, "b_mag")
    _, mask = segments(v)
    v["val"][...] = np.where(mask, np.maximum(z, 0.0), 0.0)


def entries(v, val="val"):
    """(row, position in the row, latent) of all entries, rows ascending."""
    _, mask = segments(v, val)
    row, position = np.nonzero(mask)
    return row, position, v["idx"][row, position]


def group_of(v, latents):
    return np.searchsorted(v["groups"][0], latents, side="right") if "groups" in v else np.zeros(len(latents), int)


def decode(step, op, v):
    row, position, latent = entries(v)
    w = _double(v, "w")
    n_groups = v["groups"].shape[1] if "groups" in v else 1
    y = np.zeros((n_groups, len(v["y"]), w.shape[1]))
    if "b" in v:
        y[0] += v["b"]
    group = group_of(v, latent)
    inside = group < n_groups
    row, position, latent, group = row[inside], position[inside], latent[inside], group[inside]
    np.add.at(y, (group, row), _double(v, "val")[row, position, None] * w[latent])
    v["y"][...] = np.cumsum(y, axis=0).transpose(1, 0, 2).reshape(len(v["y"]), -1)


def squared_error(step, op, v):
    y, target = _double(v, "y"), _double(v, "target")
    t = target - _double(v, "base") if "base" in v else target
    m = len(y)
    weight = _double(v, "weight") if "weight" in v else np.ones((m, 1))
    norm = schema.ERROR_NORMS[op.ints["norm"]]

    def variance(a):
        return ((a - a.mean(axis=0)) ** 2).sum() / m

    divisor = {"none": 1.0, "residual": variance(t), "target": variance(target)}[norm]
    scale = op.floats["scale"]
    if op.ints["k_aux"]:
        scale *= min(v["n_dead"][0, 0] / op.ints["k_aux"], 1.0)
    factor = scale / (m * divisor) if divisor > 0 else 0.0
    step.add_value(op, factor * (weight * (y - t) ** 2).sum())
    if op.ints["variance"] >= 0:
        step.job.values[step.number, op.ints["variance"]] += variance(t)
    if "dy" in v:
        v["dy"][...] = 2.0 * factor * weight * (y - t)


def suffix_sum(step, op, v):
    blocks = op.ints["blocks"]
    x = v["x"].astype(np.float64).reshape(len(v["x"]), blocks, -1)
    v["x"][...] = np.cumsum(x[:, ::-1], axis=1)[:, ::-1].reshape(v["x"].shape)


def code_grad(step, op, v):
    row, position, latent = entries(v, "idx")
    w = _double(v, "w")
    dy = _double(v, "dy").reshape(len(v["dy"]), -1, w.shape[1])
    v["dval"][row, position] = (dy[row, group_of(v, latent)] * w[latent]).sum(axis=1)


def space_norms(w, spaces):
    """|w_j| over each of equal blocks of columns, (n, spaces)."""
    return np.sqrt((w.astype(np.float64).reshape(len(w), max(spaces, 1), -1) ** 2).sum(axis=2))


def row_norms(w, spaces=1):
    return space_norms(w, spaces).sum(axis=1)


def penalty_weight(step, op, v, latent):
    norms = row_norms(v["w"], op.ints.get("spaces", 1)) if "w" in v else np.ones(int(latent.max(initial=0)) + 1)
    return strength(step, op) * norms[latent] / len(v["count"])


def code_penalty(step, op, v):
    row, position, latent = entries(v)
    q, val = penalty_weight(step, op, v, latent), _double(v, "val")[row, position]
    on = val > 0
    step.add_value(op, (q * val)[on].sum())
    v["dval"][row[on], position[on]] += q[on]


def relu_grad(step, op, v):
    v["dval"][_double(v, "val") <= 0] = 0.0


def jumprelu_grad(step, op, v):
    row, position, latent = entries(v)
    m = len(v["count"])
    pre, val, dval = (_double(v, name)[row, position] for name in ("pre", "val", "dval"))
    t = _double(v, "threshold")[0]
    t = (np.exp(t) if op.ints["logarithm"] else t)[latent]
    width = op.floats["bandwidth"]
    near, on = np.abs(pre - t) < width / 2, pre > t
    s = strength(step, op)
    in_val = in_step = 0.0
    l0 = on.sum() / m
    penalty = schema.JUMP_PENALTIES[op.ints["penalty"]]
    if penalty == "step":
        step.add_value(op, s * l0)
        in_step = s / m
    elif penalty in ("quadratic", "row_quadratic"):
        active = l0 if penalty == "quadratic" else np.bincount(row, on, minlength=m)
        ratio = active / op.floats["target"] - 1.0
        step.add_value(op, s * np.mean(ratio * ratio))
        in_step = 2.0 * s * ratio / (op.floats["target"] * m)
        in_step = in_step if penalty == "quadratic" else in_step[row]
    else:
        c = op.floats["p0"] * (row_norms(v["w"])[latent] if "w" in v else 1.0)
        h = np.tanh(c * val)
        step.add_value(op, s * h.sum() / m)
        in_val = s * c * (1.0 - h * h) / m
    if op.ints["l0"] >= 0:
        step.job.values[step.number, op.ints["l0"]] += l0
    dval = dval + in_val
    v["dz"][row, position] = dval * on
    if op.ints["above"]:
        in_step = in_step * on
    dtheta = -(t * dval + in_step) * near / width
    v["dtheta"][row, position] = dtheta * t if op.ints["logarithm"] else dtheta


def gated_grad(step, op, v):
    row, position, latent = entries(v)
    pre, val, dval, dgate = (_double(v, name)[row, position] for name in ("pre", "val", "dval", "dgate"))
    q = penalty_weight(step, op, v, latent)
    step.add_value(op, (q * pre).sum())
    e = np.exp(_double(v, "r")[0][latent])
    dgate, dmag = dgate + q, dval * (val > 0)
    v["dgate"][row, position], v["dmag"][row, position] = dgate, dmag
    v["dr"][row, position] = dmag * e * (pre - _double(v, "b_gate")[0][latent])
    v["dz"][row, position] = dgate + dmag * e


def by_latent(step, op, v):
    row, position, latent = entries(v, "idx")
    order = np.argsort(latent, kind="stable")
    v["start"][0] = np.concatenate([[0], np.cumsum(np.bincount(latent, minlength=v["start"].shape[1] - 1))])
    flat = row * v["idx"].shape[1] + position
    v["entry"].reshape(-1)[: len(order)] = flat[order]


def listed(v):
    """(latent, row, position in the row) of the entries by latent."""
    start = v["start"][0]
    entry = v["entry"].reshape(-1)[: start[-1]]
    return np.repeat(np.arange(len(start) - 1), np.diff(start)), *np.divmod(entry, v["coef"].shape[1])


def latent_grad(step, op, v):
    latent, row, position = listed(v)
    coef = _double(v, "coef")[row, position]
    if "db" in v:
        v["db"][0] = np.bincount(latent, coef, minlength=v["db"].shape[1])
    if "dw" not in v:
        return
    w = _double(v, "w")
    u = _double(v, "u").reshape(len(v["u"]), -1, w.shape[1])
    block = np.zeros(len(latent), int)
    if u.shape[1] > 1:
        segment = position // op.ints["capacity"]
        n_segments = v["coef"].shape[1] // op.ints["capacity"]
        block = np.where(segment == 0, group_of(v, latent), u.shape[1] - n_segments + segment)
    dw = np.zeros_like(w)
    np.add.at(dw, latent, coef[:, None] * u[row, block])
    if "factor" in v:
        dw += np.repeat(v["factor"].T, w.shape[1] // len(v["factor"]), axis=1) * w
    if op.ints["unit"]:
        square = (w * w).sum(axis=1, keepdims=True)
        along = np.divide((dw * w).sum(axis=1, keepdims=True), square, out=np.zeros_like(square), where=square > 0)
        dw -= along * w
    v["dw"][...] = dw


def latent_sum(step, op, v):
    latent, row, position = listed(v)
    gradient(v, "sum", np.bincount(latent, _double(v, "coef")[row, position], minlength=v["sum"].shape[1])[None],
             op.ints["add"])  # fmt: skip


def norm_factor(step, op, v):
    latent, row, position = listed({**v, "coef": v["val"]})
    norms = space_norms(v["w"], op.ints["spaces"]).T
    val = np.maximum(_double(v, "val")[row, position], 0.0)
    if p0 := op.floats["p0"]:
        val *= p0 * (1.0 - np.tanh(p0 * val * norms.sum(axis=0)[latent]) ** 2)
    total = np.bincount(latent, val, minlength=norms.shape[1])
    s = strength(step, op) / step.m
    v["factor"][...] = np.divide(s * total, norms, out=np.zeros_like(norms), where=norms > 0)


def bias_grad(step, op, v):
    gradient(v, "db", _double(v, "dy").sum(axis=0), op.ints["add"])


def pre_bias_grad(step, op, v):
    v["dbias"][...] = v["dbias"] - op.floats["scale"] * (_double(v, "db") @ _double(v, "w"))


def fired(step, op, v):
    row, position, latent = entries(v)
    v["since"][0] += len(v["count"])
    v["since"][0, latent[v["val"][row, position] != 0]] = 0


def dead(step, op, v):
    which = np.flatnonzero(v["since"][0] >= op.ints["limit"])
    v["list"][0, : len(which)], v["n_dead"][0, 0] = which, len(which)


def code_statistics(step, op, v):
    row, position, _ = entries({**v, "idx": np.zeros_like(v["val"], np.int32)})
    step.add_value(op, np.count_nonzero(v["val"][row, position]) / len(v["count"]))


def average(step, op, v):
    v["mean"][...] = op.floats["decay"] * _double(v, "mean") + (1.0 - op.floats["decay"]) * _double(v, "w")
