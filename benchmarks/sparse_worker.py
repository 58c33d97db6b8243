"""Contestants on sparse autoencoders: reads a line, does one round, writes {"seconds", "loss"} as JSON.

W3: steps of training a TopK autoencoder, 768 → 24,576, k 32, Adam; seconds a step. W4b: encoding with it, indices and
values; seconds a call. Rows are standard normal with a few strong directions; all begin with the same weights.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

P, N, K = 768, 24_576, 32


def rows(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, P)) + rng.exponential(size=(n, 16)) @ rng.normal(size=(16, P))
    return x.astype(np.float32)


def weights() -> np.ndarray:
    w = np.random.default_rng(1).normal(size=(N, P)).astype(np.float32)
    return w / np.linalg.norm(w, axis=1, keepdims=True)


def fastae_train(spec: dict):
    from fastae import SparseAutoencoder, TopK

    X, w = rows(spec["batch"] * spec["calls"]), weights()
    model = SparseAutoencoder.from_arrays(
        w, None, w, None, sparsity=TopK(K, aux=None), unit_norm=True, batch_size=spec["batch"], n_jobs=spec["threads"],
        learning_rate=1e-4, solver="adam", precision=spec.get("precision", "auto"),
    )  # fmt: skip
    return lambda: (model.partial_fit(X), model.loss_curve_[-1])


def torch_model(spec: dict):
    import torch

    torch.set_num_threads(spec["threads"])
    w = torch.from_numpy(weights())
    return [torch.nn.Parameter(t) for t in (w.clone(), torch.zeros(N), w.clone(), torch.zeros(P))]


def torch_train(spec: dict):
    """Sparse decode by embedding_bag, gradients of touched rows by index_add; the best eager form known here."""
    import torch

    X = torch.from_numpy(rows(spec["batch"] * spec["calls"]))
    parameters = torch_model(spec)
    w_enc, b_enc, w_dec, b_dec = parameters
    adam = torch.optim.Adam(parameters, 1e-4, fused=True)
    m = spec["batch"]

    @torch.no_grad()
    def step(x):
        centred = x - b_dec
        z = torch.addmm(b_enc, centred, w_enc.T)
        values, indices = torch.topk(z, K, dim=1, sorted=False)
        values = values.relu_()
        y = torch.nn.functional.embedding_bag(indices, w_dec, per_sample_weights=values, mode="sum") + b_dec
        delta = (2.0 / m) * (y - x)
        loss = float((y - x).square().sum() / m)
        dval = torch.bmm(w_dec[indices], delta[:, :, None])[:, :, 0] * (values > 0)
        flat = indices.reshape(-1)
        d_dec, d_enc = torch.zeros_like(w_dec), torch.zeros_like(w_enc)
        # rows times coefficients, block by block, so that temporaries stay small
        for s in range(0, m, 128):
            part = indices[s : s + 128].reshape(-1)
            d_dec.index_add_(0, part, (values[s : s + 128, :, None] * delta[s : s + 128, None, :]).reshape(-1, P))
            d_enc.index_add_(0, part, (dval[s : s + 128, :, None] * centred[s : s + 128, None, :]).reshape(-1, P))
        d_bias = torch.zeros_like(b_enc).index_add_(0, flat, dval.reshape(-1))
        d_dec -= (d_dec * w_dec).sum(1, keepdim=True) * w_dec
        w_enc.grad, b_enc.grad, w_dec.grad = d_enc, d_bias, d_dec
        b_dec.grad = delta.sum(0) - d_bias @ w_enc
        adam.step()
        w_dec.div_(w_dec.norm(dim=1, keepdim=True))
        return loss

    return lambda: (None, float(np.mean([step(X[s : s + m]) for s in range(0, len(X), m)])))


def fastae_encode(spec: dict):
    from fastae import SparseAutoencoder

    X, w = rows(spec["batch"]), weights()
    model = SparseAutoencoder.from_arrays(w, None, w, None, k=K, n_jobs=spec["threads"],
                                         precision=spec.get("precision", "auto"))  # fmt: skip
    out = np.empty((len(X), K), np.float32), np.empty((len(X), K), np.int32)
    return lambda: (model.encode(X, out=out), None)


def torch_encode(spec: dict):
    import torch

    X = torch.from_numpy(rows(spec["batch"]))
    w_enc, b_enc, _, b_dec = torch_model(spec)

    def run():
        with torch.inference_mode():
            return torch.topk(torch.addmm(b_enc, X - b_dec, w_enc.T), K, dim=1, sorted=False), None

    return run


def onnx_encode(spec: dict):
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    constants = [numpy_helper.from_array(weights(), "w"), numpy_helper.from_array(np.zeros(N, np.float32), "b"),
                 numpy_helper.from_array(np.zeros(P, np.float32), "c"),
                 numpy_helper.from_array(np.array([K], np.int64), "k")]  # fmt: skip
    nodes = [helper.make_node("Sub", ["x", "c"], ["centred"]),
             helper.make_node("Gemm", ["centred", "w", "b"], ["z"], transB=1),
             helper.make_node("TopK", ["z", "k"], ["values", "indices"], sorted=0)]  # fmt: skip
    graph = helper.make_graph(
        nodes, "encoder", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, P])],
        [helper.make_tensor_value_info("values", TensorProto.FLOAT, [None, K]),
         helper.make_tensor_value_info("indices", TensorProto.INT64, [None, K])], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec["threads"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    batch = rows(spec["batch"])
    return lambda: (session.run(None, {"x": batch}), None)


def openvino_encode(spec: dict):
    import openvino
    from openvino import opset13 as op

    x = op.parameter([-1, P], np.float32)
    z = op.add(op.matmul(op.subtract(x, op.constant(np.zeros(P, np.float32))), op.constant(weights()), False, True),
               op.constant(np.zeros(N, np.float32)))  # fmt: skip
    top = op.topk(z, op.constant(np.int32(K)), 1, "max", "none")
    settings = {"INFERENCE_NUM_THREADS": spec["threads"], "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(openvino.Model(list(top.outputs()), [x], "encoder"), "CPU", settings)
    request, batch = compiled.create_infer_request(), rows(spec["batch"])
    return lambda: (request.infer([batch], share_inputs=True, share_outputs=True), None)


MAKERS = {
    ("w3", "fastae"): fastae_train, ("w3", "torch"): torch_train,
    ("w4b", "fastae"): fastae_encode, ("w4b", "torch"): torch_encode, ("w4b", "onnxruntime"): onnx_encode,
    ("w4b", "openvino"): openvino_encode,
}  # fmt: skip


def main() -> None:
    spec = json.loads(sys.argv[1])
    run = MAKERS[spec["workload"], spec["library"]](spec)
    # a training round has its steps within; an encoding one is called as often as it says
    steps, calls = (spec["calls"], 1) if spec["workload"] == "w3" else (1, spec["calls"])
    print("ready", flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        for _ in range(calls):
            _, loss = run()
        print(json.dumps({"seconds": (time.perf_counter() - begin) / calls / steps, "loss": loss}), flush=True)


if __name__ == "__main__":
    main()
