"""Updates within the gradient: which layers, the same bits, and nothing changed where the loss is not finite."""

import numpy as np
import pytest
from conftest import backend_named

import fastae
from fastae.plan import schema
from fastae.plan.build import training_plan
from fastae.plan.plan import Job, Source

BOTH = schema.GRADIENT | schema.UPDATE


# The compiled backend updates networks below kNear parameters in one pass at the end: these columns make one above it,
# whose first layer is wider than what is taken of a gradient at once.
WIDE = 1100


def plan_of(dtype=np.float32, batch=64, n_features=37, bf16=False, **parameters):
    parameters = {"hidden_layer_sizes": (65, 17), "loss": "squared_error", "solver": "adam"} | parameters
    return training_plan(fastae.Autoencoder(6, **parameters)._network(n_features), dtype, batch, bf16=bf16)


def fused(plan):
    return [op.slots["w"] for op in plan.ops if op.kind == "dense_grad" and op.ints["fused"]]


def steps(backend, plan, X, spaces, phases, n_steps=2, threads=1):
    values = np.zeros((n_steps, plan.n_values))
    scalars = np.full((n_steps, plan.n_scalars), 0.01)
    job = Job(spaces, (Source(X, columns=X.shape[1]),), len(X), n_steps=n_steps, phases=phases, scalars=scalars,
              values=values, seed=3, n_threads=threads)  # fmt: skip
    return backend.run(backend.compile(plan), job)


def start(plan, seed=0):
    rng = np.random.default_rng(seed)
    spaces = plan.allocate()
    theta = plan.view(spaces, "theta")
    theta[...] = rng.normal(size=theta.shape) * 0.2
    for op in plan.ops:
        if op.kind == "update":
            for slot in ("s0", "s1", "s2"):
                if slot in op.slots:
                    plan.view(spaces, op.slots[slot])[...] = 0.01 * rng.uniform(size=theta.shape)
    return spaces


def test_which_layers_are_fused():
    assert fused(plan_of()) == ["w5", "w4", "w3", "w2", "w1", "w0"]
    assert fused(plan_of(normalization="batch")) == ["w5", "w4", "w3", "w2", "w1", "w0"]
    # what comes after the gradient, or reads the weights again
    assert fused(plan_of(solver=fastae.Adam(clip_norm=1.0))) == []
    assert fused(plan_of(solver="lbfgs", dtype=np.float64)) == []
    assert fused(plan_of(penalties=[fastae.L2(1e-3)])) == []
    assert fused(plan_of(tied_weights=True)) == []
    assert fused(plan_of(penalties=[fastae.Contractive(0.1)])) == ["w5", "w4", "w3"]
    assert fused(plan_of(penalties=[fastae.OnLayers(fastae.Orthogonality(0.1), [1])])) == ["w5", "w4", "w3", "w2", "w0"]
    assert len(fused(plan_of(constraints=[fastae.MaxNorm(1.0)]))) == 6  # follow the update


@pytest.mark.parametrize("solver", ["sgd", "nesterov", "adam", "amsgrad", "lion"])
@pytest.mark.parametrize(("dtype", "batch"), [(np.float32, 33), (np.float64, 300), (np.float32, 1500)])
def test_same_bits_as_one_after_the_other(native_backend, solver, dtype, batch):
    for n_features in (37, WIDE):
        plan = plan_of(dtype, batch, n_features, solver=solver, normalization="layer", dropout=0.2)
        check_same_bits(native_backend, plan, n_features)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "avx512_bf16", "avx512_amx"])
@pytest.mark.parametrize("batch", [33, 300])
def test_same_bits_in_bfloat16(isa, batch):
    for n_features in (37, WIDE):
        plan = plan_of(batch=batch, n_features=n_features, dropout=0.2, bf16=True)
        check_same_bits(backend_named(isa), plan, n_features)


def check_same_bits(native_backend, plan, n_features):
    batch, dtype = plan.batch, plan.dtype
    X = np.random.default_rng(1).uniform(size=(batch, n_features)).astype(dtype)
    together, apart = start(plan), start(plan)
    assert steps(native_backend, plan, X, together, BOTH, 1, threads=3) == 1
    assert steps(native_backend, plan, X, apart, schema.GRADIENT, 1) == 1
    before = plan.view(apart, "theta").copy()
    assert steps(native_backend, plan, X, apart, schema.UPDATE, 1) == 1
    assert (plan.view(apart, "theta") != before).any()
    for one, other in zip(together[1:2] + together[3:], apart[1:2] + apart[3:], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("n_features", [37, WIDE])
def test_a_loss_that_is_not_finite_changes_no_weight(backend, n_features):
    plan = plan_of(n_features=n_features)
    X = np.random.default_rng(1).uniform(size=(128, n_features)).astype(np.float32)
    X[70] = np.nan
    spaces, first = start(plan), start(plan)
    assert steps(backend, plan, X, spaces, BOTH) == 1
    assert steps(backend, plan, X[:64], first, BOTH, 1) == 1
    np.testing.assert_array_equal(spaces[schema.THETA], first[schema.THETA])


@pytest.mark.parametrize("rule", ["momentum", "nesterov", "rmsprop", "adam", "amsgrad", "adamw", "lion"])
def test_averages_of_a_unit_that_never_fires_do_not_become_denormal(backend, rule):
    names = fastae.ops.state_names(rule)
    param, grad = np.ones((1, 40), np.float32), np.zeros((1, 40), np.float32)
    state = [np.full((1, 40), 1.2005e-38, np.float32) for _ in names]
    for step in range(5, 8):
        fastae.ops.update(rule, param, grad, state, learning_rate=1e-3, step=step, backend=backend)
    for name, array in zip(names, state, strict=True):
        np.testing.assert_array_equal(array, np.float32(0 if name == "m" else 1e-37))


@pytest.mark.parametrize("rule", ["rmsprop", "adam", "amsgrad", "adamw"])
def test_tiny_gradients_and_a_tiny_epsilon_make_steps_of_the_learning_rate(backend, rule):
    param, grad = np.zeros((1, 40), np.float64), np.geomspace(1e-28, 1e-3, 40)[None]
    state = [np.zeros((1, 40), np.float64) for _ in fastae.ops.state_names(rule)]
    option = fastae.spec.options.SOLVERS[rule](epsilon=1e-30)
    fastae.ops.update(option, param, grad, state, learning_rate=1e-3, step=1, backend=backend)
    assert np.abs(param).max() < 1.1e-2  # rmsprop begins with 1 / sqrt(1 - rho) times the rate
