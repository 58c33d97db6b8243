"""The estimator: what it learns, what it promises, and what it refuses."""

import tracemalloc
import warnings

import numpy as np
import pytest
from conftest import WITHOUT_GPU

import fastae
from fastae.spec.network import dense_network

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(300, 4)) @ RNG.normal(size=(4, 12))).astype(np.float32)
U = RNG.uniform(size=(200, 9)).astype(np.float32)


def quick(**parameters):
    return fastae.Autoencoder(**{"n_components": 4, "max_iter": 3, "random_state": 0} | parameters)


def test_a_linear_autoencoder_reaches_pca():
    from sklearn.decomposition import PCA

    data = X + 0.1 * RNG.normal(size=X.shape).astype(np.float32)
    model = quick(n_components=3, activation="identity", initializer="pca", max_iter=50, learning_rate=1e-4).fit(data)
    pca = PCA(3).fit(data)
    best = np.mean((data - pca.inverse_transform(pca.transform(data))) ** 2)
    assert best * (1 - 1e-4) <= -model.score(data) <= best * 1.01
    few = quick(n_components=6, activation="identity", initializer="pca", max_iter=1, learning_rate=1e-9).fit(data[:3])
    np.testing.assert_allclose(few.reconstruct(data[:3]), data[:3], atol=1e-5)  # units without a component add nothing


def test_the_loss_falls_and_denoising_keeps_the_clean_target():
    model = quick(max_iter=60, noise=fastae.MaskingNoise(0.2), hidden_layer_sizes=(32,), learning_rate=3e-3).fit(X)
    assert model.loss_curve_[-1] < 0.3 * model.loss_curve_[0]
    assert -model.score(X) < 0.3 * X.var()


@pytest.mark.parametrize("loss, low, high", [("binary_cross_entropy", 0, 1), ("poisson", 0, np.inf)])
def test_losses_that_own_their_output(loss, low, high):
    model = quick(loss=loss).fit(U)
    shown = model.reconstruct(U)
    assert (shown >= low).all() and (shown <= high).all()
    np.testing.assert_allclose(model.inverse_transform(model.transform(U)), shown, rtol=1e-6)


def test_multinomial_reconstructs_a_distribution():
    counts = RNG.poisson(2, (100, 15))
    model = quick(loss="multinomial").fit(counts)
    np.testing.assert_allclose(model.reconstruct(counts).sum(axis=1), 1, rtol=1e-5)
    assert quick(loss="categorical_cross_entropy").fit(counts / counts.sum(axis=1, keepdims=True)).loss_ > 0


def test_l1_gives_true_zeros_and_constraints_hold():
    sparse = quick(penalties=[fastae.L1(0.7)], max_iter=40, learning_rate=0.01).fit(X)
    assert 0.2 < (sparse.weights_[0][0] == 0).mean() < 1
    held = quick(constraints=[fastae.MaxNorm(0.3), "non_negative"], max_iter=5).fit(X)
    for w, _ in held.weights_:
        assert (w >= 0).all()
        assert np.linalg.norm(w, axis=1).max() <= 0.3 * (1 + 1e-6)
    ranged = quick(constraints=fastae.WeightRange(-0.1, 0.05), max_iter=2).fit(X)
    assert all(w.min() >= np.float32(-0.1) and w.max() <= np.float32(0.05) for w, _ in ranged.weights_)


def test_kl_sparsity_brings_the_mean_activity_down():
    free = quick(n_components=10, code_activation="sigmoid", max_iter=80, learning_rate=0.01).fit(U)
    bound = quick(n_components=10, code_activation="sigmoid", max_iter=80, learning_rate=0.01,
                  penalties=[fastae.KLSparsity(0.05, 3.0)]).fit(U)  # fmt: skip
    assert bound.transform(U).mean() < 0.5 * free.transform(U).mean()


def test_early_stopping_puts_the_best_weights_back():
    seen = []
    model = quick(early_stopping=True, max_iter=40, learning_rate=0.05, n_iter_no_change=5,
                  callbacks=[lambda info: seen.append(info.validation_loss)]).fit(X)  # fmt: skip
    assert len(seen) == model.n_iter_ == len(model.validation_scores_)
    assert model.best_validation_score_ == max(model.validation_scores_) == -min(seen)


def test_tol_stops_and_callbacks_stop():
    assert quick(max_iter=500, tol=0.5, n_iter_no_change=2).fit(X).n_iter_ < 20
    assert quick(max_iter=50, callbacks=[lambda info: info.epoch == 2]).fit(X).n_iter_ == 2


@pytest.mark.parametrize(
    "schedule",
    [
        fastae.StepDecay(0.01, 0.5, 2),
        fastae.ExponentialDecay(0.01),
        fastae.Cosine(0.01, warmup=1),
        fastae.Cosine(0.01, restart=2),
        fastae.LinearWarmup(0.01, 1),
        fastae.OneCycle(0.02),
        fastae.ReduceOnPlateau(0.01, patience=1),
        0.01,
    ],
)
def test_schedules(schedule):
    rates = []
    quick(max_iter=6, learning_rate=schedule, callbacks=[lambda info: rates.append(info.learning_rate)]).fit(X)
    assert len(rates) == 6 and all(0 <= r <= 0.0201 for r in rates)


def test_reduce_on_plateau_reduces():
    rates = []
    quick(max_iter=12, tol=0, learning_rate=fastae.ReduceOnPlateau(1e-30, patience=0, factor=0.5, floor=1e-32),
          callbacks=[lambda info: rates.append(info.learning_rate)], shuffle=False).fit(X)  # fmt: skip
    assert rates[-1] < rates[0]


def test_sample_weight_of_zero_is_absence():
    weight = np.ones(300)
    weight[100:] = 0
    kept = quick(batch_size=300, shuffle=False).fit(X.astype(float), sample_weight=weight)
    alone = quick(batch_size=300, shuffle=False).fit(X[:100].astype(float))
    for (a, _), (b, _) in zip(kept.weights_, alone.weights_, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("option", [
    {"penalties": [fastae.ActivityL1(0.1)]}, {"penalties": [fastae.KLSparsity()], "code_activation": "sigmoid"},
    {"penalties": [fastae.Contractive(0.1)], "activation": "sigmoid", "code_activation": "sigmoid"},
    {"penalties": [fastae.Decorrelation(0.1)]}, {"normalization": "batch", "hidden_layer_sizes": (5,)},
])  # fmt: skip
def test_sample_weight_is_of_the_loss_alone(option):
    """As the docstring says: rows without weight take part in penalties on the code and batch normalisation."""
    weight = (np.arange(300) < 100).astype(float)
    other = np.where(weight[:, None] > 0, X, 2 * X)
    for options in ({}, option):
        one, two = (quick(batch_size=300, max_iter=2, **options).fit(rows, sample_weight=weight) for rows in (X, other))
        assert (one.weights_[0][0] == two.weights_[0][0]).all() == (not options)


def test_training_keeps_nothing_of_the_initial_weights():
    """Held in float64 they would take as much memory as Adam's moments."""
    held = []
    X = np.random.default_rng(0).random((64, 600), np.float32)
    callback = [lambda info: held.append(tracemalloc.get_traced_memory()[0])]
    model = fastae.Autoencoder(500, max_iter=1, callbacks=callback)
    model.fit(X)  # a backend may have to be imported and to compile
    tracemalloc.start()
    model.fit(X)
    tracemalloc.stop()
    weights = 4 * model.n_parameters_
    assert held[1] < 5.5 * weights + (1 << 20)  # weights, gradients, two moments; the weights of the epoch's start


def test_warm_start_and_partial_fit_go_on():
    model = quick(warm_start=True).fit(X)
    first = model.loss_
    assert model.fit(X).loss_ < first
    steps = model.t_
    model.partial_fit(X)
    assert model.t_ == steps + 2
    with pytest.raises(ValueError, match="layers differ"):
        model.set_params(hidden_layer_sizes=(5,)).partial_fit(X)


def test_from_arrays_takes_weights_and_never_alters_them():
    w, b = RNG.normal(size=(3, 12)).astype(np.float32), np.zeros(3, np.float32)
    copies = w.copy()
    model = fastae.Autoencoder.from_arrays([(w, b)], [(w.T, None)], code_activation="tanh")
    np.testing.assert_allclose(model.transform(X), np.tanh(X @ w.T), rtol=1e-4, atol=1e-5)
    model.partial_fit(X)
    np.testing.assert_array_equal(w, copies)
    with pytest.raises(ValueError, match=r"W has shape"):
        fastae.Autoencoder.from_arrays([(w, b)], [(w, None)])


def test_from_arrays_takes_maxout_layers():
    fitted = quick(hidden_layer_sizes=(5,), activation=fastae.Maxout(3), code_activation=fastae.Maxout(2)).fit(X)
    options = {"activation": fastae.Maxout(3), "code_activation": fastae.Maxout(2)}
    model = fastae.Autoencoder.from_arrays(fitted.weights_[:2], fitted.weights_[2:], **options)
    np.testing.assert_array_equal(model.reconstruct(X), fitted.reconstruct(X))
    with pytest.raises(ValueError, match=r"layer 0: got ndarray, wanted a pair \(W, b\)"):
        fastae.Autoencoder.from_arrays([np.ones((4, 6))], fitted.weights_[2:])


def test_not_finite_loss_stops_and_keeps_the_last_good_weights():
    model = quick(solver="sgd", learning_rate=1e30, max_iter=10, batch_size=50)
    with pytest.raises(fastae.NonFiniteLossError, match=r"epoch 1, batch \d of 6|epoch \d+"):
        model.fit(X)
    assert all(np.isfinite(w).all() for w, _ in model.weights_)
    assert np.isfinite(model.transform(X)).all()


def test_ctrl_c_leaves_a_usable_model():
    def interrupt(info):
        if info.epoch == 2:
            raise KeyboardInterrupt

    model = quick(max_iter=50, callbacks=[interrupt])
    with pytest.raises(KeyboardInterrupt):
        model.fit(X)
    assert model.n_iter_ == 2 and np.isfinite(model.transform(X)).all()


def test_signals_are_looked_at_within_an_epoch():
    import os
    import signal
    import threading
    import time

    big = np.zeros((400_000, 64), np.float32)
    model = quick(hidden_layer_sizes=(256, 256), batch_size=64, max_iter=1000)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    timer = threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    begin = time.perf_counter()
    try:
        with pytest.raises(KeyboardInterrupt):
            model.fit(big)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.perf_counter() - begin < 5
    assert np.isfinite(model.transform(big[:3])).all()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_steps_of_an_interrupted_run_count(backend, monkeypatch):
    from fastae import training

    def interrupt(bar, steps):
        raise KeyboardInterrupt

    monkeypatch.setattr(training._Bar, "_advance", interrupt)
    rows = np.tile(X, (200, 1))
    model = quick(backend=backend, batch_size=10, shuffle=False, max_iter=1, verbose=1)
    with pytest.raises(KeyboardInterrupt):
        model.fit(rows)
    monkeypatch.undo()
    steps, code = model.t_, model.transform(X)
    assert 0 < steps < 6000
    # a training of as many rows, or of one more batch where the interruption came before the step was counted
    same = [quick(backend=backend, batch_size=10, shuffle=False, max_iter=1).fit(rows[: 10 * n]).transform(X)
            for n in (steps, steps + 1)]  # fmt: skip
    assert any((code == other).all() for other in same)


def test_progress_bar(capsys):
    quick(verbose=1).fit(X)
    shown = capsys.readouterr().err
    assert "loss=" in shown and "row/s" in shown


def test_fast_transform_of_conforming_arrays_and_out():
    model = quick().fit(X)
    out = np.empty((300, 4), np.float32)
    assert model.transform(X, out=out) is out
    np.testing.assert_array_equal(out, model.transform(X))
    assert model.transform(X.astype(np.float64)).dtype == np.float64
    with pytest.raises(ValueError, match="shares memory"):
        fastae.Autoencoder(12, max_iter=1).fit(X).transform(X, out=X)


@pytest.mark.filterwarnings("ignore::fastae.DeadUnitsWarning")  # zeros stay zero
@pytest.mark.parametrize("name", ["zeros", "ones", "constant"])
def test_equal_weights_warn(name):
    with pytest.warns(UserWarning, match="equal for ever"):
        quick(initializer=name).fit(X)


@pytest.mark.parametrize(
    "name", ["uniform", "normal", "truncated_normal", "xavier_uniform", "xavier_normal", "he_uniform", "he_normal",
             "lecun_uniform", "lecun_normal", "orthogonal", "glorot_normal", "kaiming_uniform"]
)  # fmt: skip
def test_initializers(name):
    from fastae.initializers import initial_weights

    network = dense_network(400, n_components=300, activation="tanh")
    (w, b), _ = initial_weights(name, network, seed=0)
    assert w.shape == (300, 400) and not b.any()
    variance = {"xavier": 2 / 700, "glorot": 2 / 700, "he": 2 / 400, "kaiming": 2 / 400, "lecun": 1 / 400,
                "orthogonal": 1 / 400}.get(name.split("_")[0])  # fmt: skip
    if variance:
        assert w.var() == pytest.approx(variance, rel=0.03)
    if name == "orthogonal":
        np.testing.assert_allclose(w @ w.T, np.eye(300), atol=1e-10)
    if name == "truncated_normal":
        assert np.abs(w).max() <= 0.1


BAD = [
    ({"n_components": 0}, "n_components=0 must be in"),
    ({"n_components": 2.5}, "must be an integer"),
    ({"hidden_layer_sizes": (4, -1)}, r"hidden_layer_sizes\[1\]=-1"),
    ({"activation": "rleu"}, "did you mean 'relu'"),
    ({"loss": "mse"}, "is unknown"),
    ({"solver": "adm"}, "did you mean 'adam'"),
    ({"learning_rate": 0.0}, "learning_rate=0.0 must be in"),
    ({"learning_rate": "fast"}, r"must be a number or a schedule, such as fastae.Cosine"),
    ({"dropout": 1.0}, "dropout=1.0 must be in"),
    ({"dropout": (0.1, 0.2)}, "one for each of the 0 hidden"),
    ({"noise": "mask"}, "did you mean 'masking'"),
    ({"batch_size": 0}, "batch_size=0"),
    ({"batch_size": "big"}, "batch_size='big'"),
    ({"max_iter": 0}, "max_iter=0"),
    ({"tol": -1}, "tol=-1"),
    ({"n_jobs": 0}, "n_jobs"),
    ({"penalties": [fastae.KLSparsity()]}, "KLSparsity needs activities in"),
    ({"loss": "binary_cross_entropy"}, "X has values from"),
    ({"loss": "poisson"}, "X has values from"),
    ({"loss": "multinomial"}, "X has values from"),
    ({"loss": "binary_cross_entropy", "output_activation": "relu"}, "goes with output_activation='sigmoid'"),
    pytest.param({"backend": "cuda"}, "device='cuda' is not available", marks=WITHOUT_GPU),
    pytest.param({"device": "cuda"}, "device='cuda' is not available", marks=WITHOUT_GPU),
    ({"device": "gpu0"}, "device='gpu0'"),
    ({"precision": "float16"}, "precision='float16'"),
    ({"initializer": "xavir_normal"}, "did you mean 'xavier_normal'"),
    ({"initializer": [(np.ones((2, 2)), None)]}, "layers"),
    ({"callbacks": [3]}, "callbacks"),
    ({"random_state": -1}, "random_state"),
    ({"random_state": True}, "random_state=True must be an integer, a RandomState, a Generator or None"),
    ({"random_state": np.False_}, "random_state=.*must be an integer"),
    ({"random_state": "one"}, "random_state='one' must be an integer"),
    ({"random_state": 1.5}, "random_state=1.5 must be an integer"),
    ({"early_stopping": True, "validation_fraction": 1.5}, "validation_fraction"),
    ({"reduction": "max"}, "reduction='max'"),
    ({"constraints": ["maxnorm"]}, "did you mean 'max_norm'"),
    ({"activation": "Relu"}, "did you mean 'relu'"),
    ({"initializer": None}, "must be a name or one of Constant, HeNormal, HeUniform, LeCunNormal"),
    ({"penalties": [fastae.OnLayers("l2", 0.5)]}, "OnLayers.layers=0.5 must be an integer"),
    ({"n_components": 2**27}, r"must be in \[1, 67108864\]"),
    ({"n_iter_no_change": 0}, r"must be in \[1, 2147483648\]"),
    ({"n_components": True}, "n_components=True must be an integer"),
    ({"learning_rate": True}, "learning_rate=True must be a number"),
    ({"batch_size": np.True_}, "must be an integer"),
    ({"penalties": {"l2": 1e-3}}, "penalties=.* must be one option or a sequence"),
    *(
        ({name: value}, f"{name}={value!r} must be True or False")
        for value in ("False", None, 2)
        for name in ("tied_weights", "skip_connections", "shuffle", "early_stopping", "warm_start")
    ),
]


@pytest.mark.parametrize("parameters, message", BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises((ValueError, TypeError, ImportError), match=message):
        quick(**parameters).fit(X)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: fastae.MaskingNoise(-0.1), "MaskingNoise.rate=-0.1"),
        (lambda: fastae.LeakyReLU(-1), "LeakyReLU.slope"),
        (lambda: fastae.Adam(beta1=1.0), "Adam.beta1"),
        (lambda: fastae.Adam(clip_norm=0), "Adam.clip_norm"),
        (lambda: fastae.L1(-1), "L1.strength"),
        (lambda: fastae.MaxNorm(0), "MaxNorm.limit"),
        (lambda: fastae.WeightRange(1, 0), "must be <"),
        (lambda: fastae.Cosine(-1), "Cosine.learning_rate"),
        (lambda: fastae.Cosine(1e-3, floor=1e-2), "Cosine floor=0.01 must be <= learning_rate=0.001"),
        (lambda: fastae.LinearWarmup(floor=1), "LinearWarmup floor=1 must be <= learning_rate=0.001"),
        (lambda: fastae.SaltAndPepperNoise(low=1, high=0), "SaltAndPepperNoise low=1 must be <= high=0"),
        (lambda: fastae.KLSparsity(rho=0), "KLSparsity.rho"),
        (lambda: fastae.Adam(beta1=None), "Adam.beta1=None must be a number"),
        (lambda: fastae.GaussianNoise(None), "GaussianNoise.std=None must be a number"),
        (lambda: fastae.L2(True), "L2.strength=True must be a number"),
        (lambda: fastae.WeightRange("0", 1), "WeightRange.low='0' must be a number"),
        (lambda: fastae.NegativeBinomial(size_factor="no"), "size_factor='no' must be True or False"),
        (lambda: fastae.DenoisingPretraining(tied_weights="no"), "tied_weights='no' must be True or False"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_public_names_exist():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in fastae.__all__:
            assert getattr(fastae, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Autoencodr'"):
        _ = fastae.Autoencodr


def test_five_frames_from_fit_to_the_kernels():
    """fit → training.fit → run_epoch → backend.run → _core.run."""
    import traceback

    from fastae.backends import get_backend

    frames = []

    class Spy:
        name = "spy"

        def __init__(self):
            self.inner = get_backend("reference")

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def run(self, handle, job):
            frames.append([f.name for f in traceback.extract_stack() if "fastae" in f.filename])
            return self.inner.run(handle, job)

    quick(backend=Spy(), max_iter=1).fit(X)
    assert frames[0][-4:-1] == ["fit", "fit", "run_epoch"] or frames[0] == ["fit", "fit", "run_epoch"]
