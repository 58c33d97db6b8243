"""Quality of a trained sparse autoencoder beside peers: ``python -m benchmarks.sparse_quality [--rate 3e-3]``.

Activations of a sentence encoder, 384 → 12,288 latents, k 32, two passes in batches of 1,024 on the same rows in the
same order, Adam with one constant learning rate for all, decoder rows at unit norm. Everything else is each library's
own: how weights and biases begin, the loss's scale, Adam's ε, what is done for dead latents. fastae with its defaults;
sparsify's SparseCoder in a loop that does what its Trainer does around a model, without the schedule (decoder's bias
from the first batch's mean, norms before each step, gradients along rows removed, fvu as the loss, no AuxK, which is
its default); dictionary_learning's TopKTrainer without warm-up.

Each library is a process of its own. One function of NumPy scores the weights of all on the last 8,192 rows, which no
training saw: unexplained fraction of the variance about the rows' mean, active latents a row, and the part of latents
that no training row activates. ``--validate`` trains on the first 16,384 rows and scores on the 8,192 before the last:
what the learning rate was chosen by.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from .common import HERE, data_dir, record, version

N, K, BATCH, HELD_OUT = 12_288, 32, 1024, 8192
PACKAGES = {"fastae": "fastae", "sparsify": "eai-sparsify", "dictionary_learning": "dictionary-learning"}


def rows(validate: bool) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out rows, float32; the file's order is that of the text, so held-out rows are other texts."""
    X = np.load(data_dir() / "minilm_layer4_activations_f16.npy").astype(np.float32)
    return (X[:16_384], X[-2 * HELD_OUT : -HELD_OUT]) if validate else (X[:-HELD_OUT], X[-HELD_OUT:])


def batches(spec: dict):
    """Epochs of rows in the order that all libraries see."""
    X, _ = rows(spec["validate"])
    rng = np.random.default_rng(spec["seed"])
    return [X[rng.permutation(len(X))] for _ in range(spec["epochs"])]


def clock() -> np.ndarray:
    """Seconds of the wall and of the processor; the second says more on a shared machine."""
    return np.array([time.perf_counter(), time.process_time()])


# ---- contestants: seconds, and W_enc (n, p), b_enc, W_dec (n, p), b_dec ---


def train_fastae(spec: dict, epochs: list[np.ndarray]):
    from fastae import SparseAutoencoder

    model = SparseAutoencoder(N, k=K, batch_size=BATCH, learning_rate=spec["rate"], shuffle=False,
                              random_state=spec["seed"], n_jobs=1, **spec["options"])  # fmt: skip
    begin = clock()
    for X in epochs:
        model.partial_fit(X)
    seconds = clock() - begin
    a = model.arrays_
    return seconds, [a["encoder"], a["encoder_bias"], a["decoder"], a["decoder_bias"]]


def train_sparsify(spec: dict, epochs: list[np.ndarray]):
    import sparsify
    import torch

    torch.manual_seed(spec["seed"])
    coder = sparsify.SparseCoder(epochs[0].shape[1], sparsify.SparseCoderConfig(num_latents=N, k=K))
    adam = torch.optim.Adam(coder.parameters(), lr=spec["rate"])
    begin = clock()
    first = True
    for X in epochs:
        for x in torch.from_numpy(X).split(BATCH):
            if first:
                coder.b_dec.data = x.mean(0)
                first = False
            coder.set_decoder_norm_to_unit_norm()
            coder(x).fvu.backward()
            coder.remove_gradient_parallel_to_decoder_directions()
            adam.step()
            adam.zero_grad()
    seconds = clock() - begin
    coder.set_decoder_norm_to_unit_norm()
    return seconds, [t.detach().numpy() for t in (coder.encoder.weight, coder.encoder.bias, coder.W_dec, coder.b_dec)]


def train_dictionary_learning(spec: dict, epochs: list[np.ndarray]):
    import torch
    from dictionary_learning.trainers.top_k import TopKTrainer

    steps = sum(-(-len(X) // BATCH) for X in epochs)
    trainer = TopKTrainer(steps, epochs[0].shape[1], N, K, 0, "", lr=spec["rate"], warmup_steps=0, seed=spec["seed"],
                          device="cpu")  # fmt: skip
    begin, step = clock(), 0
    for X in epochs:
        for x in torch.from_numpy(X).split(BATCH):
            trainer.update(step, x)
            step += 1
    seconds = clock() - begin
    ae = trainer.ae
    return seconds, [t.detach().numpy() for t in (ae.encoder.weight, ae.encoder.bias, ae.decoder.weight.T, ae.b_dec)]


TRAIN = {"fastae": train_fastae, "sparsify": train_sparsify, "dictionary_learning": train_dictionary_learning}


def work(spec: dict) -> None:
    if spec["library"] != "fastae":
        import torch

        torch.set_num_threads(1)
    seconds, weights = TRAIN[spec["library"]](spec, batches(spec))
    np.savez(spec["out"], *weights, seconds=seconds)


# ---- scores ---


def scores(weights: list[np.ndarray], X: np.ndarray, T: np.ndarray) -> dict:
    """fvu and l0 on T, dead on X."""
    w_enc, b_enc, w_dec, b_dec = weights
    fired = np.zeros(len(w_enc), bool)

    def blocks(rows):
        for start in range(0, len(rows), 1024):
            x = rows[start : start + 1024]
            z = (x - b_dec) @ w_enc.T + b_enc
            idx = np.argpartition(z, -K, axis=1)[:, -K:]
            val = np.maximum(np.take_along_axis(z, idx, 1), 0)
            fired[idx[val > 0]] = True
            yield x, val, idx

    for _ in blocks(X):
        pass
    dead = 1 - fired.mean()
    error = active = 0.0
    for x, val, idx in blocks(T):
        code = np.zeros((len(x), len(w_enc)), np.float32)
        np.put_along_axis(code, idx, val, 1)
        error += float(np.square(x - code @ w_dec - b_dec, dtype=np.float64).sum())
        active += int((val > 0).sum())
    variance = float(np.square(T - T.mean(axis=0, dtype=np.float64)).sum())
    return {"fvu": error / variance, "l0": active / len(T), "dead": float(dead)}


def contest(spec: dict) -> dict:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FASTAE_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, "1") | {"SPARSIFY_DISABLE_TRITON": "1"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "weights.npz"
        command = [sys.executable, "-m", "benchmarks.sparse_quality", "--work", json.dumps(spec | {"out": str(out)})]
        subprocess.run(command, cwd=HERE.parent, env=environment, check=True, stdout=subprocess.DEVNULL)
        with np.load(out) as file:
            weights, seconds = [file[f"arr_{i}"] for i in range(4)], file["seconds"].tolist()
    return {"version": version(PACKAGES[spec["library"]]), "seconds": seconds[0], "processor_seconds": seconds[1],
            **scores(weights, *rows(spec["validate"]))}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", nargs="+", choices=TRAIN, default=list(TRAIN))
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--options", type=json.loads, default={}, help="of SparseAutoencoder, JSON")
    parser.add_argument("--work", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        work(options.work)
        return
    figures = {}
    spec = {"rate": options.rate, "epochs": options.epochs, "seed": options.seed, "validate": options.validate,
            "options": options.options}  # fmt: skip
    for library in options.library:
        figures[library] = f = contest(spec | {"library": library})
        label = f"{library} {f['version'] or ''}, rate {options.rate:g}, {options.epochs} epochs"
        print(
            f"{label:50} FVU {f['fvu']:.4f}, L0 {f['l0']:.2f}, dead {f['dead']:.1%}, {f['seconds']:.1f} s", flush=True
        )
    if not options.validate and not options.options and set(figures) == set(TRAIN):
        record("sparse_quality", {"rate": options.rate, "epochs": options.epochs, "seed": options.seed, "n": N, "k": K,
                                  "batch": BATCH, "figures": figures})  # fmt: skip


if __name__ == "__main__":
    main()
