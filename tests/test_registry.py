"""Formulas registered at run time: as good as the catalogue's own on every backend, and never silently wrong."""

import json
import math
import os
import pickle
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
from conftest import BACKENDS, NATIVE, backend_named
from sklearn.base import clone

import fastae
from fastae import catalog, ops, registry
from fastae.catalog import ACTIVATIONS, LOSSES, PENALTIES
from fastae.codegen import OPERATIONS
from fastae.io import model_file
from fastae.registry import travel
from fastae.registry.program import compile_program
from fastae.spec import options

X = np.random.default_rng(0).uniform(size=(300, 23)).astype(np.float32)
BY_KIND = {"activation": ACTIVATIONS, "loss": LOSSES, "penalty": PENALTIES}
ROWS = [(kind, row.name) for kind, rows in BY_KIND.items() for row in rows]
FAST = [name for name in BACKENDS if name != "numba"]  # Numba takes half a second for each row
CASES = [(kind, name, backend) for kind, name in ROWS for backend in FAST]
CASES += [(kind, name, "numba") for kind, name in ROWS if name in ("elu", "huber", "elastic_net")]


def elu(x, alpha):
    return x if x > 0 else alpha * math.expm1(x)


def elu_slope(y, alpha):
    return 1.0 if y > 0 else y + alpha


def elu_curvature(y, alpha):
    return 0.0 if y > 0 else y + alpha


def huber(y, t, delta):
    e = abs(y - t)
    return 0.5 * e * e if e <= delta else delta * (e - 0.5 * delta)


def huber_slope(y, t, delta):
    return max(min(y - t, delta), -delta)


FUNCTIONS = {
    "elu": {"y": elu, "dy": elu_slope, "d2y": elu_curvature},
    "huber": {"value": huber, "dy": huber_slope},
    "l2": {"value": lambda w, strength: 0.5 * strength * w * w, "dw": lambda w, strength: strength * w},
    "elastic_net": {
        "value": lambda w, strength, l1_ratio: strength * (l1_ratio * abs(w) + 0.5 * (1 - l1_ratio) * w * w),
        "dw": lambda w, strength, l1_ratio: strength * (
            l1_ratio * (1.0 if w > 0 else -1.0 if w < 0 else 0.0) + (1 - l1_ratio) * w),
        "smooth": lambda w, strength, l1_ratio: strength * (1 - l1_ratio) * w,
        "prox": lambda w, s, strength, l1_ratio: math.copysign(max(abs(w) - s * strength * l1_ratio, 0.0), w),
    },
}  # fmt: skip
SETTINGS = {"activation": ("low", "high", "init_gain"), "loss": ("target_low", "target_high", "output"), "penalty": ()}
SUFFIXES = {"activation": ("y", "dy", "d2y"), "loss": ("value", "dy"), "penalty": ("value", "dw", "smooth", "prox")}


def copy_of(kind, row, name, own=None, **more):
    """A row of the catalogue registered under another name, as text or as functions."""
    formulas = own or {suffix: getattr(row, suffix) for suffix in SUFFIXES[kind]}
    if kind == "penalty" and not own and row.prox is None:
        formulas = {"value": row.value, "dw": row.dw}
    settings = {key: getattr(row, key) for key in SETTINGS[kind]}
    settings = {key: None if value in (-math.inf, math.inf) else value for key, value in settings.items()}
    parameters = {p.name: [v if math.isfinite(v) else None for v in (p.default, p.low, p.high)] for p in row.parameters}
    return getattr(fastae, f"register_{kind}")(name, **formulas, parameters=parameters, **settings, **more)


@pytest.fixture
def clean():
    """Takes back what a test registers."""
    before = set(registry.FORMULAS)
    yield
    for index in sorted(set(registry.FORMULAS) - before):
        registry.forget(index)


@pytest.fixture(scope="module")
def copies():
    """Every row of the catalogue as text, and some as functions: name → option class."""
    made = {}
    for kind, rows in BY_KIND.items():
        for row in rows:
            made[row.name] = copy_of(kind, row, f"text_{row.name}")
            if row.name in FUNCTIONS and row.name != "elastic_net":
                made["f_" + row.name] = copy_of(kind, row, f"function_{row.name}", FUNCTIONS[row.name])
    yield made
    for cls in made.values():
        registry.forget(cls._index)


def results(kind, option, backend, dtype):
    """Everything that public ops give for a formula."""
    rng = np.random.default_rng(1)
    if kind == "activation":
        x = np.append(rng.normal(size=600) * 3, [0.0, -0.0, np.nan, 20, -20]).astype(dtype).reshape(11, 55)
        y = ops.activation(option, x, backend=backend)
        w, b = rng.normal(size=(37, 55)).astype(dtype) / 8, rng.normal(size=37).astype(dtype)
        x = np.nan_to_num(x)
        saved = x if option._row.needs == "x" else np.nan_to_num(y)
        dy = rng.normal(size=(11, 55)).astype(dtype)
        z = np.empty((11, 37), dtype)
        key = {"dropout": 0.3, "key": (1, 2, 3)}
        return [y, ops.activation_grad(option, saved, dy, backend=backend),
                ops.dense(x, w, b, option, preact_out=z, backend=backend, **key), z]  # fmt: skip
    if kind == "loss":
        y, t = rng.normal(size=(13, 300)).astype(dtype), rng.uniform(size=(13, 300)).astype(dtype)
        return list(ops.loss(option, y, t, backend=backend))
    return list(ops.penalty(option, rng.normal(size=(9, 301)).astype(dtype), backend=backend))


@pytest.mark.parametrize("kind, name, backend", CASES)
def test_text_gives_the_bits_of_the_catalogue(backend, kind, name, copies):
    backend = backend_named(backend)
    own = next(row for row in BY_KIND[kind] if row.name == name)
    table = {"activation": options.ACTIVATIONS, "loss": options.LOSSES, "penalty": options.PENALTIES}[kind]
    values = [p.default * 0.7 for p in own.parameters]
    for dtype in (np.float32, np.float64)[: 1 if backend.name == "numba" else 2]:
        wanted = results(kind, table[name](*values), backend, dtype)
        for one, other in zip(results(kind, copies[name](*values), backend, dtype), wanted, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name, dtype, backend", [
    *[("elu", dtype, backend) for dtype in (np.float32, np.float64) for backend in BACKENDS],
    *[(name, np.float32, backend) for name in ("huber", "l2") for backend in NATIVE],
])  # fmt: skip
def test_functions_agree_with_the_catalogue(backend, name, dtype, copies):
    backend = backend_named(backend)
    kind = copies[name].__mro__[1].__name__.removesuffix("Option").lower()
    values = [p.default * 0.7 for p in copies[name]._row.parameters]
    wanted = results(kind, copies[name](*values), backend_named("reference"), np.float64)
    for one, other in zip(results(kind, copies["f_" + name](*values), backend, dtype), wanted, strict=True):
        scale = np.nanmax(np.abs(other))
        np.testing.assert_allclose(one, other, rtol=64 * np.finfo(dtype).eps, atol=64 * np.finfo(dtype).eps * scale)


def bits(model):
    return b"".join(w.tobytes() + b.tobytes() for w, b in model.weights_)


def trained(backend, activation, loss, penalty, **parameters):
    settings = {"hidden_layer_sizes": (67, 17), "code_activation": "tanh", "activation": activation, "loss": loss,
                "penalties": [penalty, fastae.Activity(penalty)], "dropout": 0.2, "noise": "masking", "max_iter": 2,
                "batch_size": 100, "random_state": 3, "backend": backend}  # fmt: skip
    return fastae.Autoencoder(5, **settings | parameters).fit(X)


def test_a_fit_with_text_gives_the_bits_of_the_catalogue(backend, copies):
    for name in ("elu", "gelu")[: 1 if backend.name == "numba" else 2]:  # the derivative from y, and from x
        own = trained(backend, name, fastae.Huber(0.1), fastae.ElasticNet(0.01, 0.6))
        model = trained(backend, copies[name](), copies["huber"](0.1), copies["elastic_net"](0.01, 0.6))
        assert bits(model) == bits(own) and model.loss_curve_ == own.loss_curve_
        np.testing.assert_array_equal(model.reconstruct(X), own.reconstruct(X))


@pytest.mark.parametrize("name", ["elu", "gelu", "sigmoid", "f_elu"])
def test_contraction(name, backend, copies):
    if backend.name == "numba" and name != "elu":
        return

    def fitted(activation):
        return fastae.Autoencoder(67, activation=activation, penalties=fastae.Contractive(0.3, "exact"), max_iter=2,
                                  random_state=0, backend=backend).fit(X.astype(float))  # fmt: skip

    own, model = fitted(name.removeprefix("f_")), fitted(copies[name]())
    if name == "f_elu":
        np.testing.assert_allclose(model.transform(X), own.transform(X), atol=1e-4)
    else:
        assert bits(model) == bits(own)


def test_contraction_in_closed_form_needs_the_second_derivative(clean):
    half = fastae.register_activation("half", y="x / 2", dy="0.5")
    model = fastae.Autoencoder(4, activation=half(), penalties=fastae.Contractive(0.3, "exact"), max_iter=1)
    with pytest.raises(ValueError, match=r"a registered one with d2y="):
        model.fit(X)
    model.set_params(penalties=fastae.Contractive(0.3)).fit(X)


def test_a_fit_with_functions_agrees_with_the_catalogue(native_backend, copies):
    own = trained(native_backend, "elu", fastae.Huber(0.1), fastae.L2(0.01))
    model = trained(native_backend, copies["f_elu"](), copies["f_huber"](0.1), copies["f_l2"](0.01))
    np.testing.assert_allclose(model.loss_curve_, own.loss_curve_, rtol=1e-4)
    np.testing.assert_allclose(model.transform(X), own.transform(X), atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_penalty_of_functions_gives_true_zeros(backend, dtype, clean):
    penalty = copy_of("penalty", next(row for row in PENALTIES if row.name == "elastic_net"), "function_elastic_net",
                      FUNCTIONS["elastic_net"])  # fmt: skip
    parameters = {"activation": "identity", "max_iter": 20, "learning_rate": 0.01, "random_state": 0,
                  "backend": backend}  # fmt: skip
    own = fastae.Autoencoder(5, penalties=fastae.ElasticNet(0.3, 0.9), **parameters).fit(X.astype(dtype))
    model = fastae.Autoencoder(5, penalties=penalty(0.3, 0.9), **parameters).fit(X.astype(dtype))
    zeros = [(fitted.weights_[0][0] == 0).mean() for fitted in (own, model)]
    assert zeros[1] == pytest.approx(zeros[0], abs=0.05) and zeros[0] > 0.1
    np.testing.assert_allclose(model.transform(X), own.transform(X), atol=1e-2 if dtype == np.float32 else 1e-6)


@pytest.mark.parametrize("form", ["", "f_"])
def test_no_bit_depends_on_threads_or_the_batch(native_backend, form, copies):
    option = [copies[form + name]() for name in ("elu", "huber", "l2" if form else "elastic_net")]
    wide = {"hidden_layer_sizes": (260,), "batch_size": 300}
    models = [trained(native_backend, *option, n_jobs=n, **wide) for n in (1, 2, 5)]
    assert bits(models[0]) == bits(models[1]) == bits(models[2])
    together = models[0].transform(X)
    for start, stop in ((0, 1), (5, 6), (3, 40), (290, 300)):
        np.testing.assert_array_equal(models[0].transform(X[start:stop]), together[start:stop])


@pytest.mark.parametrize("backend", FAST)
def test_missing_entries_and_heads(backend, copies, tmp_path):
    backend = backend_named(backend)
    holes = np.where(np.random.default_rng(2).uniform(size=X.shape) < 0.2, np.nan, X).astype(np.float32)

    def fitted(huber, absolute, X, **parameters):
        heads = fastae.Heads((20, huber), (3, absolute, 0.5))
        return [fastae.Autoencoder(5, loss=loss, max_iter=2, random_state=0, backend=backend, **parameters).fit(X)
                for loss in (heads, huber)]  # fmt: skip

    for data, parameters in ((holes, {"missing": np.nan}), (X, {})):
        own = fitted(fastae.Huber(0.3), fastae.Absolute(), data, **parameters)
        text = fitted(copies["huber"](0.3), copies["absolute"](), data, **parameters)
        assert [bits(model) for model in text] == [bits(model) for model in own]
        assert [model.loss_curve_ for model in text] == [model.loss_curve_ for model in own]
    text[0].save(tmp_path / "m")
    np.testing.assert_array_equal(fastae.load(tmp_path / "m").set_params(backend=backend).transform(X),
                                  text[0].transform(X))  # fmt: skip


def test_a_loss_that_owns_its_output(copies):
    own = fastae.Autoencoder(3, loss="binary_cross_entropy", max_iter=2, random_state=0).fit(X)
    model = fastae.Autoencoder(3, loss=copies["binary_cross_entropy"](), max_iter=2, random_state=0).fit(X)
    np.testing.assert_array_equal(model.reconstruct(X), own.reconstruct(X))
    with pytest.raises(ValueError, match="text_binary_cross_entropy"):
        model.fit(2 * X)


def test_ranges_and_parameters_are_checked(copies):
    sigmoid, tanh = copies["sigmoid"], copies["tanh"]
    fastae.Autoencoder(3, code_activation=sigmoid(), penalties="kl_sparsity", max_iter=1).fit(X)
    with pytest.raises(ValueError, match=r"KLSparsity needs .*text_tanh"):
        fastae.Autoencoder(3, code_activation=tanh(), penalties="kl_sparsity", max_iter=1).fit(X)
    with pytest.raises(ValueError, match=r"TextLeakyRelu.slope=2 must be in \[0, 1\]"):
        copies["leaky_relu"](2)
    assert repr(copies["leaky_relu"](0.2)) == "TextLeakyRelu(slope=0.2)"
    with pytest.raises(ValueError, match="has no strength"):
        ops.penalty(fastae.register_penalty("plain", value="w * w", dw="2 * w")(), X, 0.1)
    registry.forget(catalog.INDEX["penalty"]["plain"])


# ---- what is refused ------------------------------------------------------------------------------------------------

STEP = "select(x < 0, 0 * x, x)"
REFUSED = [
    ({"y": "tanh(x)", "dy": "1 - y * y", "d2y": "-y"}, r"d2y is 0.5.*, but dy changes at the rate 0.7.* at x="),
    ({"y": "tanh(x)", "dy": "1 - y * y", "d2y": "x"}, "has 'x', which is not allowed"),
    ({"y": lambda x: x, "dy": lambda x: 1.0, "d2y": lambda y: 0.0}, "d2y takes another variable than dy"),
    ({"y": "tanh(x)", "dy": "1 - y"}, r"dy is 1.5.*, but y changes at the rate 0.7.* at x="),
    ({"y": "slope * x", "dy": "1", "parameters": {"slope": 1.0}}, "changes at the rate 1.37 at .*slope=1.37"),
    ({"y": STEP, "dy": "select(y > 0.5, 1, 0)"}, r"dy is 0, but y changes at the rate 1 at x=0\.[0-4]"),
    ({"y": "log(x)", "dy": "1 / x"}, "y is nan, wanted a finite number at x=-"),
    ({"y": "sqrt(fabs(x))", "dy": "0.5 * sign(x) / sqrt(fabs(x))"}, "dy is nan, wanted a finite number at x=0"),
    ({"y": "select(x > 0, x, 0)", "dy": "select(y > 0, 1, 0)"}, "hides NaN"),
    ({"y": "tanh(x)", "dy": "1 - y * y", "low": 0}, r"outside \[low, high\] = \[0, inf\]"),
    ({"y": "x ** 2", "dy": "2 * x"}, r"has 'x \*\* 2', which is not allowed; use erf, .*, x or numbers"),
    ({"y": "tanh(x)", "dy": "1 - x * y"}, "has 'y', which is not allowed"),
    ({"y": "tanh(x, x)", "dy": "1"}, "tanh takes 1 arguments, got 2"),
    ({"y": "x.real", "dy": "1"}, "has 'x.real', which is not allowed"),
    ({"y": "__import__('os').getpid()", "dy": "0"}, "is not allowed"),
    ({"y": "[x for x in x]", "dy": "0"}, "is not allowed"),
    ({"y": "x <", "dy": "1"}, "is not an expression"),
    ({"y": "x < 0", "dy": "1"}, "'x < 0' may only stand as the first argument of select"),
    ({"y": "select(x, 1, 2)", "dy": "0"}, "select takes a comparison first"),
    ({"y": "x + 1e999", "dy": "1"}, "a number too large"),
    ({"y": f"x + {10**400}", "dy": "1"}, "a number too large"),
    ({"y": "x" + " + x" * 100, "dy": "101"}, "more than 90 terms in a chain"),
    ({"y": "-" * 1900 + "x", "dy": "1"}, "simplify it"),
    ({"y": "(" * 900 + "x" + ")" * 900, "dy": "1"}, "is not an expression"),
    ({"y": "x\0", "dy": "1"}, "cannot be read|is not an expression"),
    ({"y": "x + 0 * " * 300 + "x", "dy": "1"}, "has 2401 characters; at most 2000"),
    ({"y": "x", "dy": None}, "has no dy; give dy= as text or a function: a derivative is never taken numerically"),
    ({"y": "x", "dy": lambda x: 1.0}, "as texts, or all of them as functions"),
    ({"y": "x", "dy": "1", "parameters": {"exp": 1}}, "'exp' must be a word .* in formulas, as x, y, t, w, s and"),
    ({"y": "x", "dy": "1", "parameters": {"target_range": 1}}, "must be a word .*, nor in options, as 'output' does"),
    ({"y": "x", "dy": "1", "parameters": {"a": 1, "b": 2, "c": 3}}, "a dict of at most 2"),
    ({"y": "x", "dy": "1", "parameters": {"a": (3, 0, 1)}}, r"a's default=3 must be in \[0, 1\]"),
    ({"y": "x", "dy": "1", "init_gain": "hee"}, "did you mean 'he'"),
    ({"y": lambda x, q: x, "dy": lambda x: 1.0}, r"y takes \('x', 'q'\); wanted \(x\)"),
    ({"y": lambda x: x, "dy": lambda z: 1.0}, r"dy takes \('z',\); wanted \(x\) or \(y\)"),
    ({"y": lambda x: print(x), "dy": lambda x: 1.0}, "y prints, which kernels cannot"),
    ({"y": lambda x: open("a"), "dy": lambda x: 1.0}, "cannot be compiled by Numba .*'open'.*write plain arithmetic"),
    ({"y": lambda x: (x, x), "dy": lambda x: 1.0}, "wanted a real number"),
    ({"y": lambda x: x * x, "dy": lambda x: x}, "but y changes at the rate"),
]  # fmt: skip


@pytest.mark.parametrize("arguments, message", REFUSED)
def test_activations_that_are_refused(arguments, message, clean):
    before = (set(registry.FORMULAS), set(options.ACTIVATIONS))
    with pytest.raises((ValueError, TypeError), match=message):
        fastae.register_activation("refused", **arguments)
    assert before == (set(registry.FORMULAS), set(options.ACTIVATIONS))


def raising(x):
    if x > 100:
        raise ValueError
    return x


def test_functions_that_raise_are_refused():
    called = numba.njit(raising)
    for function in (raising, lambda x: called(x), lambda x: x * (1.0, 2.0)[2 if x > 3 else 0]):
        with pytest.raises(ValueError, match=r"y raises.*, which kernels cannot"):
            fastae.register_activation("refused", y=function, dy=lambda x: 1.0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_exception_that_was_not_foreseen_is_nan(native_backend, clean):
    beyond = fastae.register_activation("beyond", y=lambda x: x + 0 * (1.0, 2.0)[2 if x > 30 else 0], dy=lambda x: 1.0)
    assert np.isnan(ops.activation(beyond(), np.array([[1.0, 60.0]]), backend=native_backend)).all()
    with pytest.raises(fastae.NonFiniteLossError):
        fastae.Autoencoder(2, activation=beyond(), max_iter=2, backend=native_backend).fit(1000 * X)


@pytest.mark.parametrize("name", ["relu", "softmax", "adam", "auto", "1x", "a b", "", "x" * 65, "class", 3])
def test_names_that_are_refused(name):
    with pytest.raises(ValueError, match=r"is taken by fastae itself|must be a word"):
        fastae.register_activation(name, y="x", dy="1")


@pytest.mark.parametrize("arguments, message", [
    ({"value": "t * y", "dy": "t", "target_low": 1, "target_high": 0}, "target_low=1 is above target_high=0"),
    ({"value": "fabs(y - t)", "dy": "sign(t - y)"}, "dy is -?1, but value changes at the rate -?1 at y=.*, t="),
    ({"value": "t / y - log(t / y) - 1", "dy": "(y - t) / (y * y)", "target_low": 0.1}, "value is nan"),
    ({"value": "t * log(t)", "dy": "0 * y", "target_low": 0}, "value is nan, wanted a finite number at y=.*, t=0"),
    ({"value": "select(y > t, y - t, 0 * t)", "dy": "select(y > t, 1, 0)"}, "hides NaN"),
    ({"value": "fabs(y - t)", "dy": "sign(y - t)", "output": "softmax"}, "output='softmax' is unknown"),
])  # fmt: skip
def test_losses_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fastae.register_loss("refused", **arguments)


L1 = {"value": "a * fabs(w)", "dw": "a * sign(w)", "parameters": {"a": 1.0}}
ONE_SIDED = {"value": "a * max(w, 0)", "dw": "a * select(w > 0, 1, 0)", "smooth": "0 * w", "parameters": {"a": 1.0}}


@pytest.mark.parametrize("arguments, message", [
    (L1 | {"dw": "sign(w)"}, r"dw is -1, but value changes at the rate -1.37 at .*, a=1.37"),
    (L1 | {"prox": "w"}, "has prox alone; give smooth and prox together"),
    (L1 | {"prox": "w", "smooth": "0 * w"}, "prox is .*, which does not minimise .* at w=.*, s=0.01, a=1"),
    (L1 | {"prox": "sign(w) * max(fabs(w) - s, 0)", "smooth": "0 * w"}, "does not minimise .* a=1.37"),
    (ONE_SIDED | {"prox": "w"}, r"prox is \d\S*, which does not minimise .* at w=\d"),
    (ONE_SIDED | {"prox": "select(w > 0, max(w - 2 * s * a, 0), w)"}, "does not minimise .* at w=[0-9]"),
    ({"value": "log(w)", "dw": "1 / w"}, "value is -inf, wanted a finite number at w=0"),
])  # fmt: skip
def test_penalties_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fastae.register_penalty("refused", **arguments)


def test_a_loss_with_a_domain(clean):
    loss = fastae.register_loss("itakura_saito", value="t / y - log(t / y) - 1", dy="(y - t) / (y * y)",
                                target_low=0.01, prediction_low=0)  # fmt: skip
    model = fastae.Autoencoder(3, loss=loss(), output_activation="softplus", max_iter=20, random_state=0)
    curve = model.fit(X + 0.1).loss_curve_
    assert curve[-1] < 0.7 * curve[0]


# ---- names ----------------------------------------------------------------------------------------------------------


def test_the_same_again_is_nothing_new_and_another_needs_replace(clean):
    first = fastae.register_activation("half", y="x / 2", dy="0.5")
    assert fastae.register_activation("half", y="x / 2", dy="0.5") is first
    with pytest.raises(ValueError, match="'half' is registered already, as another formula"):
        fastae.register_activation("half", y="x / 2", dy="1 / 2")
    model = fastae.Autoencoder(3, activation="half", max_iter=1, random_state=0).fit(X)
    code = model.transform(X)
    second = fastae.register_activation("half", y="0.5 * x + 0.1", dy="0.5", replace=True)
    assert second is not first
    for backend in ("reference", "numba", "auto"):  # a fitted model keeps the formula that it was fitted with
        np.testing.assert_allclose(model.set_params(backend=backend).transform(X), code, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(pickle.loads(pickle.dumps(model)).transform(X), code, rtol=1e-5, atol=1e-6)
    assert np.abs(clone(model).fit(X).transform(X) - code).max() > 1e-3
    with pytest.raises(TypeError, match="of a formula that was replaced since"):
        ops.activation(first(), X)


def test_the_same_function_again_is_nothing_new(clean):
    def make(factor):
        return {"y": lambda x: factor * x, "dy": lambda x: factor + 0.0}

    first = fastae.register_activation("scaled", **make(2.0))
    assert fastae.register_activation("scaled", **make(2.0)) is first
    with pytest.raises(ValueError, match="registered already"):
        fastae.register_activation("scaled", **make(3.0))  # the same code, another result
    with pytest.raises(ValueError, match="registered already"):  # other code, which differs where nobody looked
        fastae.register_activation("scaled", y=lambda x: 38.0 if x >= 19 else 2.0 * x, dy=lambda x: 2.0 * (x < 19))


def test_threads_register_one(clean):
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            for i in range(5):
                name = f"shared_{i}"
                made = list(pool.map(lambda _, n=name: fastae.register_activation(n, y="2 * x", dy="2"), range(16)))
                assert len(set(made)) == 1
    finally:
        sys.setswitchinterval(interval)


# ---- copies, pickles, files -----------------------------------------------------------------------------------------


def test_clone_pickle_and_file(copies, tmp_path):
    model = trained("auto", "text_elu", copies["huber"](0.2), "text_elastic_net")
    assert bits(clone(model).fit(X)) == bits(model)
    model.save(tmp_path / "m")
    for other in (pickle.loads(pickle.dumps(model)), fastae.load(tmp_path / "m")):
        np.testing.assert_array_equal(other.transform(X), model.transform(X))
        assert other.get_params()["loss"] == copies["huber"](0.2)
    stored = {(f["kind"], f["name"]) for f in model_file.read(tmp_path / "m")[1]["formulas"]}
    assert stored == {("activation", "text_elu"), ("loss", "text_huber"), ("penalty", "text_elastic_net")}


def test_a_file_whose_formula_was_replaced_since_is_refused(tmp_path, clean):
    """The file has the name, which is another formula's now; what lies in memory keeps the one it was fitted with."""
    first = fastae.register_activation("replaced", y="2 * x", dy="2")
    model = fastae.Autoencoder(2, activation="replaced", max_iter=1, random_state=0).fit(X)
    code = model.transform(X)
    model.save(tmp_path / "m")
    fastae.register_activation("replaced", y="3 * x", dy="3", replace=True)
    np.testing.assert_array_equal(model.transform(X), code)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).transform(X), code)
    with pytest.raises(fastae.ModelFileError, match="'replaced' is another formula here than the one stored"):
        fastae.load(tmp_path / "m")
    assert fastae.register_activation("replaced", y="2 * x", dy="2", replace=True) is not first
    np.testing.assert_array_equal(fastae.load(tmp_path / "m").transform(X), code)


def test_a_file_that_fails_takes_back_its_own_formulas_alone(clean):
    described = {"kind": "activation", "name": "of_a_file", "arguments": {"y": "2 * x", "dy": "2", "parameters": {}}}
    with pytest.raises(KeyError), travel.restoring([described]):
        assert "of_a_file" in options.ACTIVATIONS
        fastae.register_activation("of_another_thread", y="3 * x", dy="3")
        raise KeyError
    assert "of_a_file" not in options.ACTIVATIONS and "of_another_thread" in options.ACTIVATIONS


CHILD = """
    import pickle, sys
    import numpy as np
    import fastae

    folder, X = sys.argv[1], np.load(sys.argv[1] + "/X.npy")

    def refused(load, text):
        try:
            load()
        except ValueError as error:
            assert text in str(error), error
        else:
            raise AssertionError(text)

    def unpickled(name):
        with open(f"{folder}/{name}.pickle", "rb") as file:
            return pickle.load(file)

    wanted = np.load(folder + "/code.npy")
    unfitted = unpickled("unfitted")  # nothing but the name of the formula
    np.testing.assert_array_equal(unfitted.fit(X).transform(X), wanted)
    np.testing.assert_array_equal(unpickled("model").transform(X), wanted)
    np.testing.assert_array_equal(fastae.load(folder + "/model").transform(X), wanted)
    again = fastae.load(folder + "/model").partial_fit(X)
    np.testing.assert_array_equal(again.transform(X), np.load(folder + "/on.npy"))

    advice = "call fastae.register_activation('own_function', …) with it before loading"
    refused(lambda: unpickled("function"), advice)
    refused(lambda: fastae.load(folder + "/function"), advice)
    other = fastae.register_activation("own_function", y=lambda x: 2 * x, dy=lambda x: 2.0)
    refused(lambda: unpickled("function"), "is another formula here than the one stored")
    refused(lambda: fastae.load(folder + "/function"), "is another formula here than the one stored")
    fastae.register_activation("own_function", y=lambda x: 3.0 * x, dy=lambda x: 3.0, replace=True)
    np.testing.assert_allclose(unpickled("function").transform(X), np.load(folder + "/function.npy"), rtol=1e-6)
    fastae.load(folder + "/function").transform(X)

    fastae.register_activation("own_text", y="4 * x", dy="4", replace=True)
    refused(lambda: fastae.load(folder + "/changed"), "is another formula here than the one stored")
    print("all right")
"""


def test_in_a_fresh_process(tmp_path, clean):
    fastae.register_activation("own_text", y="x * sigmoid(slope * x)", parameters={"slope": 1.0},
                               dy="sigmoid(slope * x) * (1 + slope * x * sigmoid(-slope * x))")  # fmt: skip
    unfitted = fastae.Autoencoder(4, activation="own_text", hidden_layer_sizes=(9,), max_iter=2, random_state=0)
    model = clone(unfitted).fit(X)
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "code.npy", model.transform(X))
    (tmp_path / "unfitted.pickle").write_bytes(pickle.dumps(unfitted))
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    model.save(tmp_path / "model")
    np.save(tmp_path / "on.npy", fastae.load(tmp_path / "model").partial_fit(X).transform(X))
    fastae.register_activation("own_text", y="5 * x", dy="5", replace=True)
    clone(unfitted).fit(X).save(tmp_path / "changed")
    function = fastae.register_activation("own_function", y=lambda x: 3.0 * x, dy=lambda x: 3.0)
    with_function = clone(unfitted).set_params(activation=function()).fit(X)
    (tmp_path / "function.pickle").write_bytes(pickle.dumps(with_function))
    with_function.save(tmp_path / "function")
    np.save(tmp_path / "function.npy", with_function.transform(X))
    root = str(Path(__file__).resolve().parent.parent)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path)], capture_output=True, text=True,
                          cwd=root, env=os.environ | {"PYTHONPATH": root}, check=False)  # fmt: skip
    assert done.stdout == "all right\n", done.stderr


@pytest.mark.parametrize("change, message", [
    (lambda f: f["arguments"].update(y="__import__('os').getpid()"), "is not allowed"),
    (lambda f: f["arguments"].update(y="x + " * 600 + "x"), "at most 2000"),
    (lambda f: f["arguments"].update(dy="0.25"), "changes at the rate"),
    (lambda f: f["arguments"].update(replace=True), "things that this fastae does not know"),
    (lambda f: f.update(kind="update"), "things that this fastae does not know"),
    (lambda f: f.update(name="../x"), "must be a word"),
    (lambda f: f.pop("arguments"), "does not fit together"),
    (lambda f: f["arguments"].update(parameters=[1]), "does not fit together"),
])  # fmt: skip
def test_bad_descriptions_are_refused_and_leave_nothing(change, message, tmp_path, clean):
    half = fastae.register_activation("stored", y="x / 2", dy="0.5")
    fastae.register_activation("other", y="x / 3", dy="1 / 3")
    model = fastae.Autoencoder(3, activation="stored", output_activation="other", max_iter=1).fit(X)
    model.save(tmp_path / "m")
    tensors, description = model_file.read(tmp_path / "m")
    for formula in description["formulas"]:
        if formula["name"] == "stored":
            change(formula)
    description["formulas"].reverse()  # the good one comes first
    from safetensors.numpy import save_file

    save_file(tensors, tmp_path / "bad", metadata={"fastae": json.dumps(description)})
    for index in (half._index, catalog.INDEX["activation"]["other"]):
        registry.forget(index)
    before = set(registry.FORMULAS)
    with pytest.raises(fastae.ModelFileError, match=message):
        fastae.load(tmp_path / "bad")
    assert set(registry.FORMULAS) == before and "other" not in options.ACTIVATIONS
    fastae.load(tmp_path / "m")  # the good file is read where the bad one was refused
    assert {"stored", "other"} <= set(options.ACTIVATIONS)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_gives_the_same_bits(copies):
    option = copies["f_elu"](), copies["huber"](), copies["f_l2"]()
    wanted = bits(trained("auto", *option, n_jobs=2))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, b"1" if bits(trained("auto", *option, n_jobs=2)) == wanted else b"0")
        finally:
            os._exit(0)
    os.close(writer)
    assert os.read(reader, 1) == b"1"
    os.waitpid(child, 0)


# ---- programs -------------------------------------------------------------------------------------------------------


def test_programs_share_what_is_the_same_and_need_few_places():
    program = compile_program("tanh(x * a) * tanh(x * a) + 2", ["x"], ["a"])
    assert [list(OPERATIONS)[code] for code in program.code[:, 0]] == ["mul", "tanh", "mul", "add"]
    assert program.n_temporaries == 1 and list(program.constants) == [2.0]
    right = "x"
    for _ in range(40):
        right = f"(exp(x) * x + {right})"
    assert compile_program(right, ["x"], []).n_temporaries <= 3
    assert list(compile_program("x", ["x"], []).code[0]) == [0, 0, 0, 0, 0, 0]
    assert [math.copysign(1, c) for c in compile_program("0.0 * x + -0.0", ["x"], []).constants] == [1, -1]


def _random_formula(rng, depth):
    if depth == 0 or rng.uniform() < 0.1:
        return rng.choice(["x", "x", "x", "a", "b", f"{rng.normal():.3f}"])
    part = [_random_formula(rng, depth - 1) for _ in range(4)]
    kind = rng.integers(6)
    if kind == 0:
        return f"({part[0]} {rng.choice(list('+-*'))} {part[1]})"
    if kind == 1:
        return f"{rng.choice(['tanh', 'erf', 'sigmoid', 'fabs', 'sign', 'expm1'])}(-tanh({part[0]}))"
    if kind == 2:
        return f"select({part[0]} {rng.choice(['<', '<=', '>', '>=', '==', '!='])} {part[1]}, {part[2]}, {part[3]})"
    if kind == 3:
        return f"{rng.choice(['max', 'min'])}({part[0]}, {part[1]})"
    if kind == 4:
        return f"fma({part[0]}, {part[1]}, {part[2]})"
    return f"({part[0]} / (1 + fabs({part[1]})))"


PARAMETERS = (catalog.Parameter("a", 1.0), catalog.Parameter("b", 1.0))


@pytest.mark.parametrize("seed", range(40))
def test_random_programs_on_every_instruction_set(native_backend, seed, clean):
    text = _random_formula(np.random.default_rng(seed), 4)
    compiled = compile_program(text, ["x"], ["a", "b"])
    row = catalog.Activation("anything", "Anything", y=text, dy="0 * x", parameters=PARAMETERS)
    option = registry._add(registry.Formula("activation", next(registry._numbers), row, {}, {}, {}))(0.3, -1.7)
    assert len(compiled.code)
    x = np.random.default_rng(seed).normal(size=(5, 301))
    wanted = ops.activation(option, x, backend="reference")
    got = ops.activation(option, x, backend=native_backend)
    # a comparison of two values that rounding brings apart may go either way, at few points
    close = np.isclose(got, wanted, rtol=1e-9, atol=1e-9 * (1 + np.abs(wanted).max()))
    assert close.mean() > 0.97
