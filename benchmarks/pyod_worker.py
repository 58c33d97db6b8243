"""PyOD's AutoEncoder with its defaults, in an interpreter of its own: one fit per line of standard input.

Imports nothing of fastae. A line is {"data": file of train and test rows, "scores": file to write}; the answer is
{"seconds": of fit}. The first line out tells the versions, after a fit that warms PyTorch up.
"""

import importlib.metadata
import json
import sys
import time

import numpy as np


def fit(rows):
    from pyod.models.auto_encoder import AutoEncoder

    model = AutoEncoder(verbose=0)
    begin = time.perf_counter()
    model.fit(rows)
    return model, time.perf_counter() - begin


def main():
    fit(np.random.default_rng(0).normal(size=(256, 8)))
    print(json.dumps({name: importlib.metadata.version(name) for name in ("pyod", "torch")}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        with np.load(job["data"]) as file:
            train, test = file["train"], file["test"]
        model, seconds = fit(train)
        np.save(job["scores"], model.decision_function(test))
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
