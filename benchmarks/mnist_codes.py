"""Codes of MNIST: ``python -m benchmarks.mnist_codes [deep] [sparse] [neighbours] [stacked]``.

deep: 784-1000-500-250-30 mirrored, squared error per image beside PCA's at 30 components (published: 3.00 and 13.87,
Hinton & Salakhutdinov 2006). sparse: KL-sparse sigmoid features with logistic regression. neighbours: accuracy of
nearest neighbours among the codes of a plain, a contractive and a Laplacian autoencoder. stacked: error and time of a
stacked denoising autoencoder with a softmax head (Vincent et al. 2010), and of the same network without pretraining,
beside the time of the tutorial on stacked denoising autoencoders that came with Theano: 585 minutes of pretraining and
444 of fine-tuning for 1.3 % on all 10,000 test rows, on one core of a Xeon E5430.

The test rows are the first 3,000 of MNIST's 10,000. ``--validate`` trains on the first 50,000 rows and scores on the
last 10,000 of the training set instead: what settings were chosen by.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import fastae

from .common import data_dir, record


def digits(validate: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """X, y to train on and X, y to score on; X float32 in [0, 1]."""
    with np.load(data_dir() / "mnist_63k.npz") as file:
        X, T = ((file[name].reshape(-1, 784) / np.float32(255)).astype(np.float32) for name in ("x_train", "x_test"))
        y, u = file["y_train"].ravel(), file["y_test"].ravel()
    return (X[:50_000], y[:50_000], X[50_000:], y[50_000:]) if validate else (X, y, T, u)


def per_image(X: np.ndarray, shown: np.ndarray) -> float:
    """Mean over images of the squared error summed over pixels."""
    return float(np.square(X - shown, dtype=np.float64).sum(axis=1).mean())


def deep(X, y, T, u, epochs: int) -> dict:
    from sklearn.decomposition import PCA

    model = fastae.Autoencoder(
        30, hidden_layer_sizes=(1000, 500, 250), activation="silu", output_activation="sigmoid", reduction="sum",
        solver=fastae.AdamW(weight_decay=0.2), learning_rate=fastae.Cosine(1e-3, warmup=1), batch_size=256,
        max_iter=epochs, tol=0.0, random_state=0,
    )  # fmt: skip
    begin = time.perf_counter()
    model.fit(X)
    seconds = time.perf_counter() - begin
    pca = PCA(30, random_state=0).fit(X)
    ours, theirs = per_image(T, model.reconstruct(T)), per_image(T, pca.inverse_transform(pca.transform(T)))
    print(
        f"784-1000-500-250-30, {epochs} epochs, {seconds:.0f} s: squared error per image {ours:.2f}; PCA {theirs:.2f}"
    )
    return {"epochs": epochs, "seconds": seconds, "squared_error": ours, "pca": theirs}


def sparse(X, y, T, u, epochs: int) -> dict:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = fastae.Autoencoder(
        2000, code_activation="sigmoid", output_activation="sigmoid", loss="binary_cross_entropy", reduction="sum",
        penalties=[fastae.KLSparsity(0.05, 0.3)], noise=fastae.GaussianNoise(0.3), max_iter=epochs,
        learning_rate=fastae.Cosine(6e-3), batch_size=128, tol=0.0, random_state=0,
    )  # fmt: skip
    begin = time.perf_counter()
    code = model.fit(X).transform(X)
    seconds = time.perf_counter() - begin
    # units differ in how often they fire: unscaled, the regression stops long before its optimum
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=400)).fit(code, y)
    raw = LogisticRegression(C=0.1, max_iter=400).fit(X, y)
    error, error_raw = 1 - classifier.score(model.transform(T), u), 1 - raw.score(T, u)
    print(f"KL-sparse 784-2000, {epochs} epochs, {seconds:.0f} s, mean activity {code.mean():.3f}: "
          f"logistic regression {error:.2%} error, on pixels {error_raw:.2%}")  # fmt: skip
    return {"epochs": epochs, "seconds": seconds, "error": error, "error_on_pixels": error_raw}


def neighbours(X, y, T, u, epochs: int) -> dict:
    from sklearn.neighbors import KNeighborsClassifier

    result = {"epochs": epochs}
    for name, penalties in (
        ("plain", ()),
        ("contractive", fastae.Contractive(0.03)),
        ("Laplacian", fastae.Laplacian(10, 1.0)),
    ):
        model = fastae.Autoencoder(
            32, hidden_layer_sizes=(512, 256), output_activation="sigmoid", reduction="sum", penalties=penalties,
            learning_rate=fastae.Cosine(1e-3), batch_size=256, max_iter=epochs, tol=0.0, random_state=0,
        )  # fmt: skip
        begin = time.perf_counter()
        code = model.fit(X).transform(X)
        seconds = time.perf_counter() - begin
        accuracy = KNeighborsClassifier(5).fit(code, y).score(model.transform(T), u)
        result[name] = {"accuracy": accuracy, "seconds": seconds, "squared_error": per_image(T, model.reconstruct(T))}
        print(f"{name}: 5 nearest neighbours among codes {accuracy:.2%}, {seconds:.0f} s, "
              f"squared error per image {result[name]['squared_error']:.2f}", flush=True)  # fmt: skip
    return result


TUTORIAL_MINUTES = 1029


def stacked(X, y, T, u, epochs: int) -> dict:
    layers = fastae.DenoisingPretraining(fastae.MaskingNoise(0.3), max_iter=5, loss="squared_error", tied_weights=True,
                                         learning_rate=fastae.Cosine(1e-3), batch_size=128)  # fmt: skip
    result: dict = {"epochs": epochs}
    for name, pretraining in (("pretrained", layers), ("not pretrained", None)):
        model = fastae.AutoencoderClassifier(
            (1000, 1000), pretraining=pretraining, normalization="batch", dropout=0.4,
            noise=fastae.GaussianNoise(0.3), penalties=[fastae.L2(1e-5)], batch_size=128,
            learning_rate=fastae.Cosine(2e-3, warmup=1), max_iter=epochs, tol=0.0, n_iter_no_change=epochs,
            random_state=0,
        )  # fmt: skip
        begin, busy = time.perf_counter(), time.process_time()
        model.fit(X, y)
        seconds, busy = time.perf_counter() - begin, time.process_time() - busy
        wrong = int((model.predict(T) != u).sum())
        result[name] = {"error": wrong / len(u), "rows": len(u), "seconds": seconds, "processor_seconds": busy}
        print(f"784-1000-1000-10 {name}, {epochs} epochs: {wrong} of {len(u)} rows wrong, {wrong / len(u):.2%}, in "
              f"{seconds / 60:.1f} minutes ({busy / 60:.1f} of processor time); the tutorial took {TUTORIAL_MINUTES:,}",
              flush=True)  # fmt: skip
    return result


RUNS = {"deep": (deep, 100), "sparse": (sparse, 20), "neighbours": (neighbours, 15), "stacked": (stacked, 60)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", nargs="*", choices=[*RUNS, []], help="default: all")
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--rows", type=int, default=None, help="train on the first rows only")
    parser.add_argument("--validate", action="store_true")
    options = parser.parse_args()
    X, y, T, u = digits(options.validate)
    for name in options.which or RUNS:
        run, epochs = RUNS[name]
        result = run(X[: options.rows], y[: options.rows], T, u, options.epochs or epochs)
        if not options.validate and options.rows is None:
            record("mnist_codes", {"network": name, **result})


if __name__ == "__main__":
    main()
