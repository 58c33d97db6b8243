"""One contestant: reads a line, does one round of its workload, writes JSON: seconds, processor, loss, ceiling.

``processor`` is the time of all its threads on processors, which other programs don't add to. ``ceiling``: of fused
multiply-adds from registers on one thread at the end of fastae's own rounds, GFLOP/s; the clock that products leave
behind is the one that they had.

The networks: W1 30-64-32-64-30, ReLU, squared error; W2 784-512-128-32-128-512-784, ReLU, dropout 0.2, sigmoid with
binary cross-entropy; both Adam, learning rate 1e-3; seconds of one epoch. W4a: encoding 768-256-64, ReLU.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from .common import mnist, tabular

WIDTHS = {"w1": (30, 64, 32, 64, 30), "w2": (784, 512, 128, 32, 128, 512, 784), "w4a": (768, 256, 64)}


def rows_of(workload: str) -> np.ndarray:
    if workload == "w4a":
        return np.random.default_rng(0).normal(size=(65_536, 768)).astype(np.float32)
    return tabular() if workload == "w1" else mnist()[0]


def encoder_weights() -> list:
    rng = np.random.default_rng(1)
    return [((rng.normal(size=(n, k)) / k**0.5).astype(np.float32), np.zeros(n, np.float32)) for k, n in
            ((768, 256), (256, 64))]  # fmt: skip


def encoder_model(threads: int):
    import fastae

    pairs = encoder_weights()
    decoder = [(w.T.copy(), None) for w, _ in reversed(pairs)]
    return fastae.Autoencoder.from_arrays(pairs, decoder, code_activation="relu", n_jobs=threads)


def fastae_round(spec: dict):
    import fastae

    X = rows_of(spec["workload"])
    if spec["workload"] == "w4a":
        encode = encoder_model(spec["threads"]).encoder(spec.get("precision", "auto"), sample=X[:4096])
        batch = X[: spec["batch"]]
        return lambda: (encode(batch), None)
    hidden, code = ((64,), 32) if spec["workload"] == "w1" else ((512, 128), 32)
    loss = {"loss": "binary_cross_entropy", "dropout": 0.2} if spec["workload"] == "w2" else {}
    # the peers' initial weights are of LeCun's size rather than He's
    model = fastae.Autoencoder(
        code, hidden_layer_sizes=hidden, code_activation="relu", batch_size=spec["batch"], tol=0.0, random_state=0,
        max_iter=spec.get("epochs", 1), n_iter_no_change=10**6, warm_start=True, n_jobs=spec["threads"],
        precision=spec.get("precision", "auto"), initializer="lecun_uniform", **loss,
    )  # fmt: skip
    return lambda: (model.fit(X), model.loss_)


def torch_network(spec: dict):
    import torch

    torch.set_num_threads(spec["threads"])
    torch.manual_seed(0)
    widths = WIDTHS[spec["workload"]]
    layers = []
    for i, (k, n) in enumerate(zip(widths, widths[1:], strict=False)):
        layers.append(torch.nn.Linear(k, n))
        if i < len(widths) - 2 or spec["workload"] == "w4a":
            layers.append(torch.nn.ReLU())
            if spec["workload"] == "w2" and n != 32:  # none on the code, as in fastae
                layers.append(torch.nn.Dropout(0.2))
    return torch.nn.Sequential(*layers)


def torch_round(spec: dict):
    import torch

    X = torch.from_numpy(rows_of(spec["workload"]))
    net = torch_network(spec)
    if spec["workload"] == "w4a":
        net.eval()
        batch = X[: spec["batch"]]

        def encode():
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=spec.get("bf16", False)):
                return net(batch), None

        return encode
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=spec.get("fused", False))
    criterion = torch.nn.MSELoss() if spec["workload"] == "w1" else torch.nn.BCEWithLogitsLoss()

    def epoch():
        order, total = torch.randperm(len(X)), 0.0
        for start in range(0, len(X), spec["batch"]):
            x = X[order[start : start + spec["batch"]]]
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=spec.get("bf16", False)):
                output = net(x)
            loss = criterion(output.float(), x)
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(x)
        return None, total / len(X)

    return lambda: [epoch() for _ in range(spec.get("epochs", 1))][-1]


def sklearn_round(spec: dict):
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPRegressor

    X = rows_of(spec["workload"])
    model = MLPRegressor(
        hidden_layer_sizes=WIDTHS[spec["workload"]][1:-1], solver="adam", alpha=0.0, tol=0.0, n_iter_no_change=10**6,
        max_iter=spec.get("epochs", 1), batch_size=spec["batch"], warm_start=True, random_state=0,
    )  # fmt: skip

    def epoch():
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(X, X)
        return None, 2 * model.loss_  # scikit-learn halves the squared error

    return epoch


def onnx_round(spec: dict):
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, name = [], [], "x"
    for i, (w, b) in enumerate(encoder_weights()):
        constants += [numpy_helper.from_array(w, f"w{i}"), numpy_helper.from_array(b, f"b{i}")]
        nodes.append(helper.make_node("Gemm", [name, f"w{i}", f"b{i}"], [f"z{i}"], transB=1))
        nodes.append(helper.make_node("Relu", [f"z{i}"], [f"y{i}"]))
        name = f"y{i}"
    graph = helper.make_graph(
        nodes, "encoder", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 768])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 64])], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec["threads"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    batch = rows_of("w4a")[: spec["batch"]]
    return lambda: (session.run(None, {"x": batch}), None)


def openvino_round(spec: dict):
    import openvino
    from openvino import opset13 as op

    x = y = op.parameter([-1, 768], np.float32)
    for w, b in encoder_weights():
        y = op.relu(op.add(op.matmul(y, op.constant(w), False, True), op.constant(b)))
    # float32 asked for: on some processors the default is bfloat16
    settings = {"INFERENCE_NUM_THREADS": spec["threads"], "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(openvino.Model([y], [x], "encoder"), "CPU", settings)
    request, batch = compiled.create_infer_request(), rows_of("w4a")[: spec["batch"]]
    return lambda: (request.infer([batch], share_inputs=True, share_outputs=True), None)


def elementwise_round(spec: dict):
    """One pass of dropout, sigmoid or Adam over large arrays, or a copy by NumPy, into arrays that exist."""
    x = np.random.default_rng(0).normal(size=(spec["elements"] // 1024, 1024)).astype(np.float32)
    y, op, threads = np.empty_like(x), spec["workload"], spec["threads"]
    states = [np.full_like(x, 1e-3) for _ in range(2)]
    if spec["library"] == "numpy":
        return lambda: (np.copyto(y, x), None)
    if spec["library"] == "fastae":
        from fastae import ops

        return {
            "dropout": lambda: (ops.dropout(x, 0.5, (1, 2, 3), out=y, n_threads=threads), None),
            "sigmoid": lambda: (ops.activation("sigmoid", x, out=y, n_threads=threads), None),
            "adam": lambda: (ops.update("adam", y, x, states, 1e-3, 10, n_threads=threads), None),
        }[op]
    import torch

    torch.set_num_threads(threads)
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    if op == "adam":
        parameter = torch.nn.Parameter(b)
        parameter.grad = a
        optimizer = torch.optim.Adam([parameter], 1e-3, fused=True)
        return lambda: (optimizer.step(), None)
    # torch's dropout makes its result; there is no out=
    return (lambda: (torch.nn.functional.dropout(a, 0.5), None)) if op == "dropout" else (
        lambda: (torch.sigmoid(a, out=b), None))  # fmt: skip


MAKERS = {"fastae": fastae_round, "torch": torch_round, "sklearn": sklearn_round, "onnxruntime": onnx_round,
          "openvino": openvino_round}  # fmt: skip


def ceiling_of(library: str):
    if library != "fastae":
        return lambda: None
    from fastae.backends import get_backend

    return lambda: get_backend("native").peak_gflops("float32", 0.0)


def main() -> None:
    spec = json.loads(sys.argv[1])
    run = elementwise_round(spec) if "elements" in spec else MAKERS[spec["library"]](spec)
    calls, epochs = spec.get("calls", 1), spec.get("epochs", 1)
    ceiling = ceiling_of(spec["library"])
    print("ready", flush=True)
    for _ in sys.stdin:
        begin, busy = time.perf_counter(), time.process_time()
        for _ in range(calls):
            _, loss = run()
        seconds, processor = time.perf_counter() - begin, time.process_time() - busy
        print(json.dumps({"seconds": seconds / calls / epochs, "processor": processor / calls / epochs, "loss": loss,
                          "ceiling": ceiling()}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
