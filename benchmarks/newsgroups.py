"""20 Newsgroups: ``python -m benchmarks.newsgroups [--seeds N]``.

`AutoencoderClassifier` with and without pretraining beside logistic regression, all on the same tf-idf weights (log
counts, rows of unit length) of a vocabulary of 5,000 words, tested on the official test split (7,532 rows). C of the
logistic regression is chosen by cross-validation on the training split, the classifier's settings were chosen on the
2,314 rows of it that ``--validate`` holds out.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import fastae

from .common import data_dir, record

PRETRAINING = fastae.DenoisingPretraining(fastae.MaskingNoise(0.3), max_iter=5, loss="squared_error", tied_weights=True)


def split(name: str) -> tuple[Any, np.ndarray]:
    """Counts (N, 5000) in CSR and classes (N,)."""
    folder = data_dir()
    counts = scipy.sparse.csr_array(scipy.sparse.load_npz(folder / f"20ng_{name}_bow.npz"))
    return counts, np.loadtxt(folder / f"20ng_{name}_labels.txt", dtype=int)


def single(X: Any) -> Any:
    return X.astype(np.float32)


def weighted(model: Any) -> Any:
    """The model behind tf-idf, in float32."""
    return make_pipeline(TfidfTransformer(sublinear_tf=True), FunctionTransformer(single), model)


def network(pretraining: Any, seed: int) -> fastae.AutoencoderClassifier:
    return fastae.AutoencoderClassifier(
        (300,), activation="tanh", pretraining=pretraining, dropout=0.5, batch_size=128, max_iter=12, tol=0.0,
        n_iter_no_change=12, learning_rate=fastae.Cosine(1e-3, warmup=1), random_state=seed,
    )  # fmt: skip


def fitted(model: Any, X: Any, y: np.ndarray) -> tuple[Any, float]:
    begin = time.perf_counter()
    return model.fit(X, y), time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--validate", action="store_true")
    options = parser.parse_args()
    (X, y), (T, u) = split("train"), split("test")
    if options.validate:
        order = np.random.default_rng(0).permutation(len(y))
        T, u, X, y = X[order[9000:]], y[order[9000:]], X[order[:9000]], y[order[:9000]]

    search, seconds_of_search = fitted(
        GridSearchCV(weighted(LogisticRegression(max_iter=300)), {"logisticregression__C": [1, 3, 10, 30]}, cv=3), X, y
    )
    C = search.best_params_["logisticregression__C"]
    linear, seconds = fitted(weighted(LogisticRegression(C=C, max_iter=300)), X, y)
    result: dict = {"logistic_regression": {"C": C, "accuracy": linear.score(T, u), "seconds": seconds,
                                            "seconds_of_search": seconds_of_search}}  # fmt: skip
    print(f"logistic regression on tf-idf, C={C} of 1, 3, 10, 30: accuracy {linear.score(T, u):.2%}, fit in "
          f"{seconds:.1f} s (search for C {seconds_of_search:.0f} s)", flush=True)  # fmt: skip
    for name, pretraining in (("pretrained", PRETRAINING), ("not pretrained", None)):
        runs = [fitted(weighted(network(pretraining, seed)), X, y) for seed in range(options.seeds)]
        accuracies, times = [model.score(T, u) for model, _ in runs], [seconds for _, seconds in runs]
        result[name] = {"accuracies": accuracies, "seconds": times}
        print(f"5000-300-20 {name}: accuracy {np.mean(accuracies):.2%} "
              f"({', '.join(f'{a:.2%}' for a in accuracies)}), fit in {np.mean(times):.1f} s", flush=True)  # fmt: skip
    if not options.validate:
        record("newsgroups", result)


if __name__ == "__main__":
    main()
