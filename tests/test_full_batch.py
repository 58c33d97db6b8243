"""L-BFGS and conjugate gradient: the optimum that scipy finds on a loss written in NumPy; bounds; the objective."""

import functools
import warnings

import numpy as np
import pytest
from conftest import backend_named
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor
from threadpoolctl import threadpool_limits

import fastae
from fastae.full_batch import objective as objective_module
from fastae.full_batch.objective import Objective
from fastae.full_batch.objective import plan as plan_of
from fastae.full_batch.variables import Variables
from fastae.plan import schema
from fastae.plan.plan import Source
from fastae.spec.network import dense_network
from fastae.training import Settings, State

RNG = np.random.default_rng(0)
X = np.tanh(RNG.normal(size=(200, 3)) @ RNG.normal(size=(3, 7))) + 0.1 * RNG.normal(size=(200, 7))
START = [(0.4 * RNG.normal(size=(3, 7)), 0.1 * RNG.normal(size=3)), (0.4 * RNG.normal(size=(7, 3)), np.zeros(7))]
WEIGHT = np.random.default_rng(5).integers(0, 4, len(X)).astype(float)
SOLVERS = ["lbfgs", "cg"]


def model(solver="lbfgs", **parameters):
    """7 → 3 tanh → 7."""
    settings = {"n_components": 3, "activation": "tanh", "solver": solver, "initializer": START, "max_iter": 2000,
                "tol": 1e-7, "n_iter_no_change": 10**6, "random_state": 0}  # fmt: skip
    return fastae.Autoencoder(**settings | parameters)


def flat(pairs):
    return np.concatenate([part.ravel() for pair in pairs for part in pair])


def numpy_objective(theta, l2=0.0, weight=None):
    """Mean squared error and ½ l2 ‖W‖² of the 7-3-7 network, and the gradient."""
    weight = np.ones(len(X)) if weight is None else weight / weight.mean()
    sizes = np.cumsum([21, 3, 21, 7])
    w1, b1, w2, b2 = np.split(theta, sizes[:-1])
    w1, w2 = w1.reshape(3, 7), w2.reshape(7, 3)
    h = np.tanh(X @ w1.T + b1)
    e = h @ w2.T + b2 - X
    value = (weight @ (e * e)).sum() / X.size + 0.5 * l2 * ((w1 * w1).sum() + (w2 * w2).sum())
    d = 2 * weight[:, None] * e / X.size
    dh = (d @ w2) * (1 - h * h)
    parts = dh.T @ X + l2 * w1, dh.sum(0), d.T @ h + l2 * w2, d.sum(0)
    return value, np.concatenate([part.ravel() for part in parts])


@functools.cache
def optimum(l2, weighted=False):
    return minimize(numpy_objective, flat(START), args=(l2, WEIGHT if weighted else None), jac=True, method="BFGS",
                    options={"gtol": 1e-9, "maxiter": 5000})  # fmt: skip


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_optimum_that_scipy_finds(backend, solver):
    if backend.name == "cuda" and solver == "cg":
        pytest.skip("thousands of evaluations, which take long with device kernels on the host; lbfgs is tested")
    expected = optimum(1e-2)
    fitted = model(solver, backend=backend, penalties=[fastae.L2(1e-2)]).fit(X)
    value, grad = numpy_objective(flat(fitted.weights_), 1e-2)
    assert fitted.loss_ == pytest.approx(value, rel=1e-12) and value == pytest.approx(expected.fun, rel=1e-11)
    assert np.abs(grad).max() <= 1.01e-7 * np.abs(numpy_objective(flat(START), 1e-2)[1]).max()
    w1, b1, w2, b2 = np.split(expected.x, [21, 24, 45])  # the same up to order and signs of the code's units
    same = np.tanh(X @ w1.reshape(3, 7).T + b1) @ w2.reshape(7, 3).T + b2
    np.testing.assert_allclose(fitted.reconstruct(X), same, atol=1e-5)
    assert fitted.backend_ == backend.name


def optimality(fitted, slope, l2, low=-np.inf, high=np.inf):
    """Largest violation of the conditions at a minimum with slope · |w| and low ≤ w ≤ high."""
    _, grad = numpy_objective(flat(fitted.weights_), l2)
    weights = flat([(np.ones_like(w), np.zeros_like(b)) for w, b in fitted.weights_]) > 0
    w, g = flat(fitted.weights_), grad
    up = g + np.where(w >= 0, slope, -slope)  # slope of the objective to the right, and to the left
    down = g + np.where(w > 0, slope, -slope)
    worst = np.maximum(np.where(w < high, -up, 0), np.where(w > low, down, 0))
    return np.where(weights, worst, np.abs(g)).max()


@pytest.mark.parametrize("penalty, ratio", [(fastae.ElasticNet(0.05, 0.7), 0.7), (fastae.L1(0.03), 1.0)])
def test_l1_gives_true_zeros_at_an_optimum(backend, penalty, ratio):
    fitted = model(backend=backend, penalties=[penalty], tol=1e-7).fit(X)
    w = np.concatenate([w.ravel() for w, _ in fitted.weights_])
    assert 3 < (w == 0).sum() < 35 and np.abs(w[w != 0]).min() > 1e-4
    slope, l2 = penalty.strength * ratio, penalty.strength * (1 - ratio)
    assert optimality(fitted, slope, l2) < 1e-7
    smooth, _ = numpy_objective(flat(fitted.weights_), l2)
    assert fitted.loss_ == pytest.approx(smooth + slope * np.abs(w).sum(), rel=1e-12)


@pytest.mark.parametrize("constraint, low, high", [
    (fastae.NonNegative(), 0.0, np.inf), (fastae.WeightRange(-0.3, 0.4), -0.3, 0.4),
    (fastae.WeightRange(0.05, 0.6), 0.05, 0.6), (fastae.WeightRange(-0.6, -0.05), -0.6, -0.05),
    (fastae.WeightRange(-0.6, 0.0), -0.6, 0.0),
])  # fmt: skip
@pytest.mark.parametrize("strength", [0.0, 0.01])
def test_constraints_are_bounds(constraint, low, high, strength):
    penalties = [fastae.L1(strength / 4), fastae.L1(3 * strength / 4), fastae.L2(1e-2)]
    fitted = model(constraints=[constraint], penalties=penalties, tol=1e-8).fit(X)
    for w, _ in fitted.weights_:
        assert low <= w.min() and w.max() <= high
    assert any(np.isin(w, (low, high)).any() for w, _ in fitted.weights_)
    assert optimality(fitted, strength, 1e-2, low, high) < 1e-7


def test_the_split_into_two_parts_has_the_right_gradient():
    network = dense_network(5, n_components=3, solver="lbfgs", penalties=[fastae.ElasticNet(0.3, 0.4), "l2"],
                            constraints=[fastae.WeightRange(-1, 2)])  # fmt: skip
    plan = plan_of(network, 10, weighted=False)
    variables = Variables.of(plan, network.solver)
    z = RNG.uniform(0, 1, len(variables.slope) + len(variables.split))
    theta = RNG.normal(size=len(variables.slope))
    np.testing.assert_array_equal(
        variables.theta(variables.start(theta)), np.clip(theta, variables.lower, variables.upper)
    )

    def lifted(z):
        theta = variables.theta(z)
        return variables.lift(z, np.sin(theta).sum() + (variables.slope * np.abs(theta)).sum(), np.cos(theta))

    assert len(variables.split) == 30 and sorted(set(variables.slope)) == pytest.approx([0.0, 0.12], rel=1e-15)
    for i in range(len(z)):
        e = np.zeros(len(z))
        e[i] = 1e-6
        assert lifted(z)[1][i] == pytest.approx((lifted(z + e)[0] - lifted(z - e)[0]) / 2e-6, abs=1e-8)


@pytest.mark.parametrize("parameters, message", [
    ({"constraints": [fastae.MaxNorm(2)]}, "solver='lbfgs' cannot keep the constraint 'max_norm'; use WeightRange"),
    ({"constraints": [fastae.MaxNorm(2)], "solver": "cg"}, "solver='cg' cannot keep the constraint 'max_norm'"),
    ({"penalties": ["l1"], "solver": "cg"}, "solver='cg' cannot keep L1 or elastic-net.* use solver='lbfgs'"),
    ({"constraints": ["non_negative"], "solver": "cg"}, "cannot keep constraints on weights; use solver='lbfgs'"),
    ({"constraints": [fastae.WeightRange(-2, -1), "non_negative"]}, "constraints contradict each other"),
])  # fmt: skip
def test_what_a_solver_cannot_keep_is_refused(parameters, message):
    estimator = model(**parameters)
    with pytest.raises(ValueError, match=message):
        estimator.fit(X)
    assert not [name for name in vars(estimator) if name.endswith("_")]


# ---- the objective ---

OBJECTIVES = {
    "weighted, L2": {"penalties": ["l2"]},
    "dropout, noise, activity": {
        "hidden_layer_sizes": (9,),
        "dropout": 0.3,
        "noise": "gaussian",
        "penalties": [fastae.ActivityL1(0.1), "l2"],
    },
    "KL sparsity": {"code_activation": "sigmoid", "penalties": [fastae.KLSparsity(0.1, 0.5), "l2"]},
    "swap noise": {"noise": fastae.SwapNoise(0.3)},
    "batch norm": {"hidden_layer_sizes": (9,), "normalization": "batch", "penalties": [fastae.Decorrelation(0.1)]},
    "tied, layer norm, orthogonal": {
        "hidden_layer_sizes": (9,),
        "normalization": "layer",
        "tied_weights": True,
        "penalties": [fastae.Orthogonality(0.1)],
    },
    "contractive": {"penalties": [fastae.Contractive(0.1)]},
    "perturbed": {"hidden_layer_sizes": (9,), "penalties": [fastae.Contractive(0.1)]},
    "projector": {"penalties": [fastae.SVDProjector(0.1)]},
}
WHOLE = ("KL sparsity", "swap noise", "batch norm")  # fmt: skip


def objective(name, backend, rows=None, n_threads=2, n_rows=200):
    network = dense_network(7, n_components=4, activation="tanh", solver="lbfgs", **OBJECTIVES[name])
    plan = plan_of(network, n_rows, weighted=True)
    source = Source(X, columns=7, weight=np.random.default_rng(3).uniform(0.5, 1.5, len(X)))
    settings = Settings(None, network.solver, 1, seed=4, n_threads=n_threads)
    return plan, Objective(backend, plan, State(plan.allocate()), (source,), settings, rows)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_blocks_add_up_to_the_whole(backend, name, monkeypatch):
    whole_plan, whole = objective(name, backend)
    theta = 0.3 * np.random.default_rng(1).normal(size=len(whole.theta))
    value, grad = whole(theta)
    monkeypatch.setattr(objective_module, "BLOCK", 64)
    plan, blocks = objective(name, backend)
    assert whole_plan.batch == 200 and plan.batch == (200 if name in WHOLE else 64)
    value_of_blocks, grad_of_blocks = blocks(theta)
    assert value_of_blocks == pytest.approx(value, rel=1e-13)
    np.testing.assert_allclose(grad_of_blocks, grad, rtol=1e-11, atol=1e-14)
    # padding between the parameters has no gradient
    is_parameter = np.zeros(len(theta), dtype=bool)
    for buffer in plan.buffers:
        if buffer.space == schema.THETA and buffer.name != "theta":
            is_parameter[buffer.offset // 8 : buffer.offset // 8 + buffer.rows * buffer.columns] = True
    assert not grad_of_blocks[~is_parameter].any() and (~is_parameter).any()
    # another set of rows
    rows = np.arange(0, 200, 2)
    _, some = objective(name, backend, rows, n_rows=100)
    assert some(theta)[0] != value


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_is_that_of_the_value(name, monkeypatch):
    monkeypatch.setattr(objective_module, "BLOCK", 64)
    _, f = objective(name, backend_named("reference"))
    theta = 0.3 * np.random.default_rng(1).normal(size=len(f.theta))
    direction = np.random.default_rng(2).normal(size=len(theta)) * (f(theta)[1] != 0)
    _, grad = f(theta)
    slope = (f(theta + 1e-6 * direction)[0] - f(theta - 1e-6 * direction)[0]) / 2e-6
    assert grad @ direction == pytest.approx(slope, rel=1e-7)


def test_the_bits_depend_on_no_threads(native_backend):
    wide = np.random.default_rng(1).normal(size=(1100, 90))
    runs = []
    for n_jobs, blas in ((1, 1), (2, 2), (3, 1), (2, 1), (1, 2)):
        with threadpool_limits(blas, user_api="blas"), pytest.warns(ConvergenceWarning):
            fitted = fastae.Autoencoder(20, hidden_layer_sizes=(60,), solver="lbfgs", max_iter=5, random_state=0,
                                        penalties=["l2"], backend=native_backend, n_jobs=n_jobs).fit(wide)  # fmt: skip
        runs.append(flat(fitted.weights_).tobytes())
    assert len(flat(fitted.weights_)) > 10_000 and fitted.plan_.batch < 1100  # BLAS cuts dot products of that length
    assert len(set(runs)) == 1


# ---- beside scikit-learn ---


def sklearn_start(estimator, x, y):
    """Fits one iteration to have the attributes, then puts START in."""
    with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator.set_params(max_iter=1).fit(x, y)
        estimator.coefs_ = [w.T.copy() for w, _ in START]
        estimator.intercepts_ = [b.copy() for _, b in START]
        return estimator.set_params(warm_start=True, max_iter=5000).fit(x, y)


def test_the_optimum_of_scikit_learn():
    settings = {"hidden_layer_sizes": (3,), "activation": "tanh", "solver": "lbfgs", "tol": 1e-6, "max_fun": 10**6}
    # MLPRegressor of several columns reports ½ their mean and descends ½ their sum: its line search ends where the two
    # part, so no penalty here, and ours may end lower
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs = sklearn_start(MLPRegressor(alpha=0.0, **settings), X, X)
        ours = model(max_iter=400).fit(X)
    loss, _ = numpy_objective(flat([(w.T, b) for w, b in zip(theirs.coefs_, theirs.intercepts_, strict=True)]))
    assert 0.999 * loss < ours.loss_ < loss * (1 + 1e-6)
    # cross-entropy of multi-label rows, where value and gradient agree
    labels = (X > 0).astype(float)
    theirs = sklearn_start(MLPClassifier(alpha=2.0, **settings), labels, labels.astype(int))
    ours = model(loss="binary_cross_entropy", reduction="sum", penalties=[fastae.L2(2.0 / len(X))]).fit(labels)
    assert ours.loss_ == pytest.approx(theirs.loss_, rel=1e-8)
    np.testing.assert_allclose(ours.reconstruct(labels), theirs.predict_proba(labels), atol=1e-3)
