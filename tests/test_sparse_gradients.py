"""Training plans of sparse autoencoders: gradients by finite differences, and the same on every backend."""

import numpy as np
import pytest
from conftest import assert_close

from fastae.backends import get_backend
from fastae.plan import schema
from fastae.plan.plan import Job, Source
from fastae.plan.sparse import LOSS, OTHER, scalars_of, sparse_training_plan
from fastae.spec import sparse as s

TRANSCODER = {"transcoder": True, "pre_bias": False, "n_targets": 5}
CASES = {
    "topk": {"sparsity": s.TopK(aux=None)},
    "topk, multi": {"sparsity": s.TopK(aux=None, multi=s.MultiTopK(2))},
    "topk, free norms, no pre-bias": {"sparsity": s.TopK(aux=None), "unit_norm": False, "pre_bias": False},
    "topk, normalized loss": {"sparsity": s.TopK(aux=None), "loss": "normalized"},
    "topk, cosine": {"sparsity": s.TopK(aux=None), "loss": "cosine"},
    "topk, layer": {"sparsity": s.TopK(aux=None), "normalization": "layer"},
    "topk, scale": {"sparsity": s.TopK(aux=None), "normalization": "scale", "input_scale": 2.5},
    "abs_topk": {"sparsity": "abs_topk"},
    "batch_topk": {"sparsity": s.BatchTopK(aux=None)},
    "matryoshka": {"sparsity": s.Matryoshka(over=s.TopK(aux=None))},
    "matryoshka over batch_topk, sum": {"sparsity": s.Matryoshka((5, 9, 7), s.BatchTopK(aux=None), "sum")},
    "relu": {"sparsity": s.ReLUCode(0.3, weighted=False)},
    "relu, weighted": {"sparsity": s.ReLUCode(0.3), "unit_norm": False},
    "relu, crosscoder": {"sparsity": s.ReLUCode(0.3), "spaces": (4, 4), "n_features": 8},
    "gated": {"sparsity": s.Gated(0.3)},
    "gated, no pre-bias": {"sparsity": s.Gated(0.3), "pre_bias": False},
    "gated, own decoder": {"sparsity": s.Gated(0.3, detached=False)},
    "gated, SAELens": {"sparsity": s.Gated(0.3, weighted=True, detached=False), "unit_norm": False},
    "transcoder": {"sparsity": s.TopK(aux=None), **TRANSCODER},
    "transcoder, skip": {"sparsity": "relu", "skip": True, **TRANSCODER},
    "transcoder, skip, layer": {"sparsity": "relu", "skip": True, "normalization": "layer", **TRANSCODER},
    "transcoder, skip, scale": {
        "sparsity": "relu",
        "skip": True,
        "normalization": "scale",
        "input_scale": 2.5,
        **TRANSCODER,
    },
    "aux": {"sparsity": s.TopK(aux=s.AuxK(5, 0.5)), "dead_after": 10},
    "aux, target": {"sparsity": s.BatchTopK(aux=s.AuxK(9, 0.5, "target", scaled=True)), "dead_after": 10},
    "aux, without relu": {"sparsity": s.TopK(aux=s.AuxK(16, 0.5, "none", relu=False)), "dead_after": 10},
    "abs_topk, aux without relu": {"sparsity": s.AbsTopK(aux=s.AuxK(16, 0.5, "none", relu=False)), "dead_after": 10},
    "matryoshka, aux": {"sparsity": s.Matryoshka(over=s.TopK(aux=s.AuxK(4, 0.5, "none"))), "dead_after": 10},
    "jumprelu": {"sparsity": s.JumpReLU(0.1, threshold=0.2, bandwidth=0.4)},
    "jumprelu, plain": {"sparsity": s.JumpReLU(0.1, threshold=0.2, bandwidth=0.4, logarithm=False)},
    "jumprelu, tanh": {"sparsity": s.JumpReLU(0.1, "tanh", threshold=0.2, bandwidth=0.4)},
    "jumprelu, tanh, free norms": {
        "sparsity": s.JumpReLU(0.9, "tanh", threshold=0.2, bandwidth=0.4),
        "unit_norm": False,
    },
    "jumprelu, quadratic": {"sparsity": s.JumpReLU(0.1, "quadratic", 3.0, threshold=0.2, bandwidth=0.4)},
    "jumprelu, rows, above": {
        "sparsity": s.JumpReLU(0.1, "row_quadratic", 3.0, threshold=0.2, bandwidth=0.4, window="above"),
    },
}
# by design not derivatives of the loss: thresholds by straight-through estimates, the decoder detached from a term
NOT_DERIVATIVES = {"jumprelu": ("threshold",), "gated": ("decoder", "decoder_bias"), "aux": ("decoder_bias",)}


def network_of(case, n_features=7, **changes):
    options = {"n_components": 21, "k": 3, **CASES[case], **changes}
    return s.sparse_network(options.pop("n_features", n_features), options.pop("n_targets", None), **options)


class Problem:
    """A plan with random parameters and rows, on a backend."""

    def __init__(self, network, backend="reference", dtype=np.float64, m=13, seed=0, bf16=0):
        self.network, self.backend = network, get_backend(backend) if isinstance(backend, str) else backend
        self.plan = sparse_training_plan(network, dtype, m, bf16=bf16)
        self.spaces = self.plan.allocate()
        rng = np.random.default_rng(seed)
        self.m = m
        for name, rows, columns in network.parameters:
            scale = 0.5 if name in ("encoder", "decoder", "skip") else 0.1
            self.view(name)[...] = rng.normal(size=(rows, columns)) * scale
        if "threshold" in {name for name, _, _ in network.parameters}:
            t = network.sparsity.threshold
            self.view("threshold")[...] = np.log(t) if network.sparsity.logarithm else t
        if network.unit_norm:
            self.view("decoder")[...] /= np.linalg.norm(self.view("decoder"), axis=1, keepdims=True)
        self.view("batch_threshold")[...] = -1
        self.view("since")[0, ::3] = 100
        if network.groups is not None:
            self.view("groups")[0] = network.groups
        x = rng.normal(size=(m, network.n_features)).astype(dtype)
        y = rng.normal(size=(m, network.n_targets)).astype(dtype)
        self.sources = (Source(x), Source(y)) if network.transcoder else (Source(x),)
        self.handle = self.backend.compile(self.plan)

    def view(self, name):
        return self.plan.view(self.spaces, name)

    def run(self, phases=schema.GRADIENT, threads=1):
        values = np.zeros((1, self.plan.n_values))
        where = scalars_of(self.network)
        scalars = np.ones((1, self.plan.n_scalars))
        for i in range(where.rule + 1):
            scalars[0, i] = 1e-3
        if where.k >= 0:
            scalars[0, where.k] = 5
        if where.strength >= 0:
            scalars[0, where.strength] = 0.7
        job = Job(self.spaces, self.sources, self.m, phases=phases, scalars=scalars, values=values, n_threads=threads)
        before = [source.data.copy() for source in self.sources]
        assert self.backend.run(self.handle, job) == 1
        assert all(np.array_equal(a, b.data) for a, b in zip(before, self.sources, strict=True)), "rows were altered"
        return values[0]


def objective(problem):
    values = problem.run()
    return values[LOSS] + values[OTHER]


@pytest.mark.parametrize("case", CASES)
def test_gradients_by_finite_differences(case):
    problem = Problem(network_of(case, **({"n_components": 60} if "aux" in case else {})))
    problem.run()
    gradients = {name: problem.view(f"d{name}").copy() for name, _, _ in problem.network.parameters}
    rng = np.random.default_rng(1)
    skipped = {name for key, names in NOT_DERIVATIVES.items() if key in case for name in names}
    if not getattr(problem.network.sparsity, "detached", True):
        skipped = set()
    for name, gradient in gradients.items():
        if name in skipped:
            continue
        w = problem.view(name)
        alone = np.ones(len(w), bool)
        if problem.network.aux is not None:  # the residual is detached: latents that are in the auxiliary code alone
            if name not in ("encoder", "decoder"):
                continue
            idx, count = problem.view("idx"), problem.view("count")[:, 0]
            alone = problem.view("since")[0] >= 10
            for r in range(problem.m):
                alone[idx[r, : count[r]]] = False
            assert alone.sum() >= 2 and np.abs(gradient[alone]).max() > 0
        if name == "decoder" and problem.network.unit_norm:  # along the sphere
            direction = rng.normal(size=w.shape)
            direction -= (direction * w).sum(1, keepdims=True) * w / (w * w).sum(1, keepdims=True)
            directions = [direction * alone[:, None]]
        elif problem.network.aux is not None:
            directions = [rng.normal(size=w.shape) * alone[:, None]]
        else:
            directions = [rng.normal(size=w.shape) for _ in range(3)]
        for direction in directions:
            old, h = w.copy(), 1e-6
            w[...] = old + h * direction
            high = objective(problem)
            w[...] = old - h * direction
            low = objective(problem)
            w[...] = old
            assert (high - low) / (2 * h) == pytest.approx((gradient * direction).sum(), rel=2e-5, abs=1e-7), name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_backends_agree(tested_backend, case, dtype):
    network = network_of(case)
    got, want = Problem(network, tested_backend, dtype), Problem(network)
    for a, b in zip(got.sources, want.sources, strict=True):
        b.data[...] = a.data
    for name in (*(name for name, _, _ in network.parameters),):
        want.view(name)[...] = got.view(name)
    everything = schema.GRADIENT | schema.UPDATE
    values, expected = got.run(everything), want.run(everything)
    np.testing.assert_allclose(values, expected, rtol=1e-4 if dtype == np.float32 else 1e-10, atol=1e-6)
    for name in (*(name for name, _, _ in network.parameters), "batch_threshold"):
        # Adam's first step is ±rate whatever the gradient's size: a gradient of rounding noise may go either way
        assert_close(got.view(name), want.view(name), length=1000, scale=10.0)
    np.testing.assert_array_equal(got.view("since"), want.view("since"))


@pytest.mark.parametrize("case", CASES)
def test_gradients_agree(tested_backend, case):
    """As they are, before a rule whose first step hardly depends on their size."""
    got, want = Problem(network_of(case), tested_backend), Problem(network_of(case))
    got.run()
    want.run()
    for name, _, _ in want.network.parameters:
        wanted = want.view(f"d{name}")
        np.testing.assert_allclose(got.view(f"d{name}"), wanted, rtol=1e-9, atol=1e-11 * np.abs(wanted).max())


@pytest.mark.parametrize("case", CASES)
def test_threads_change_no_bit(native_backend, case):
    network = network_of(case, **({} if "sum" in case else {"n_components": 210}))
    bits = []
    for threads in (1, 2, 3, 4):
        problem = Problem(network, native_backend, np.float32, m=67)
        problem.run(schema.GRADIENT | schema.UPDATE, threads)
        bits.append(problem.spaces[schema.THETA].tobytes())
    assert len(set(bits)) == 1


def test_aux_reaches_the_encoder_of_dead_latents(backend):
    """sparsify's fused encoder ignores this gradient, so that its dead latents stay dead."""
    problem = Problem(network_of("aux", n_components=90), backend)
    before = problem.view("encoder").copy()
    problem.run(schema.GRADIENT | schema.UPDATE)
    dead = problem.view("since")[0] >= 100  # before and after
    moved = np.abs(problem.view("encoder") - before).sum(axis=1) > 0
    assert dead.sum() > 10 and (moved & dead).sum() >= 5


def test_aux_without_relu_reaches_latents_that_are_negative_everywhere(backend):
    moved = []
    for case in ("aux", "aux, without relu"):
        problem = Problem(network_of(case, n_components=90), backend)
        problem.view("encoder_bias")[0, ::3] = -50.0  # the dead ones
        problem.run()
        moved.append(np.abs(problem.view("dencoder")[::3]).max())
    assert moved[0] == 0 < moved[1]


@pytest.mark.parametrize("window", ["both", "above"])
@pytest.mark.parametrize("kind", ["step", "quadratic", "row_quadratic"])
def test_gradient_of_thresholds(backend, kind, window):
    """Straight-through estimates, which no differences of the loss show, by their formulas."""
    target, width, theta = 5.0, 0.4, 0.2
    option = s.JumpReLU(0.3, kind, target, threshold=theta, bandwidth=width, logarithm=False, window=window)
    problem = Problem(network_of("jumprelu", sparsity=option, pre_bias=False), backend)
    values = problem.run()
    x, w, d = problem.sources[0].data, problem.view("encoder"), problem.view("decoder")
    z = x @ w.T + problem.view("encoder_bias")
    on, m, strength = z > theta, problem.m, 0.3 * 0.7
    active = on.sum(axis=1, keepdims=True)
    if kind == "step":
        penalty, of_step = active.mean(), np.full((m, 1), 1 / m)
    else:
        active = active if kind == "row_quadratic" else np.full((m, 1), active.mean())
        penalty = ((active / target - 1) ** 2).mean()
        of_step = 2 * (active / target - 1) / (target * m)
    df = 2 * ((z * on) @ d + problem.view("decoder_bias") - x) @ d.T / m
    near = np.abs(z - theta) < width / 2
    counted = near & on if window == "above" else near
    assert 0 < (near & on).sum() < near.sum()
    wanted = -(theta / width) * (df * near).sum(axis=0) - strength / width * (of_step * counted).sum(axis=0)
    assert values[OTHER] == pytest.approx(strength * penalty)
    np.testing.assert_allclose(problem.view("dthreshold")[0], wanted, rtol=1e-9, atol=1e-12)


def test_thresholds_stay_positive(backend):
    """θ that is learned itself stops at 0, as SAELens's; below it, negative pre-activations would pass."""
    problem = Problem(network_of("jumprelu, plain"), backend)
    problem.view("threshold")[...] = 1e-6  # less than a step, and the penalty pushes some of them down
    problem.view("dthreshold")[...] = 1.0
    problem.run(schema.UPDATE)
    theta = problem.view("threshold")[0]
    assert (theta == 0).all()
