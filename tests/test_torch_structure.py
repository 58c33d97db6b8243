"""Twenty steps of SGD on the same batches as PyTorch: tied weights, maxout, normalisation, the contractive penalty."""

import numpy as np
import pytest

import fastae

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

F = torch.nn.functional
M, P, H, K = 16, 11, 23, 5


def start(*shapes):
    rng = np.random.default_rng(1)
    return [(rng.normal(size=shape) / shape[1] ** 0.5, rng.normal(size=shape[0]) * 0.1) for shape in shapes]


def data():
    return np.random.default_rng(0).uniform(size=(20 * M, P))


def train(X, parameters, loss):
    """Mean loss of twenty steps; the torch parameters are changed in place."""
    optimizer = torch.optim.SGD(parameters, 0.05)
    values = []
    for start in range(0, len(X), M):
        optimizer.zero_grad()
        value = loss(torch.from_numpy(X[start : start + M]))
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    return np.mean(values)


def ours(X, pairs, backend, **parameters):
    return fastae.Autoencoder(
        K, solver="sgd", learning_rate=0.05, batch_size=M, max_iter=1, shuffle=False, initializer=pairs,
        backend=backend, **parameters,
    ).fit(X)  # fmt: skip


def tensors(pairs):
    return [torch.tensor(a, requires_grad=True) for pair in pairs for a in pair]


def close(array, tensor):
    np.testing.assert_allclose(array, tensor.detach().numpy(), rtol=1e-9, atol=1e-11)


def test_tied_weights(tested_backend):
    X, encoder = data(), start((H, P), (K, H))
    rng = np.random.default_rng(2)
    decoder = [(w.T.copy(), rng.normal(size=w.shape[1]) * 0.1) for w, _ in reversed(encoder)]
    model = ours(X, encoder + decoder, tested_backend, hidden_layer_sizes=(H,), activation="tanh", tied_weights=True)
    w0, b0, w1, b1 = tensors(encoder)
    b2, b3 = (torch.tensor(b, requires_grad=True) for _, b in decoder)

    def loss(x):
        h = torch.tanh(F.linear(torch.tanh(F.linear(x, w0, b0)), w1, b1) @ w1 + b2)  # the code is linear
        return F.mse_loss(h @ w0 + b3, x)

    assert model.loss_ == pytest.approx(train(X, [w0, b0, w1, b1, b2, b3], loss), rel=1e-12)
    for array, tensor in zip([a for pair in model.weights_ for a in pair], (w0, b0, w1, b1, w1.T, b2, w0.T, b3),
                             strict=True):  # fmt: skip
        close(array, tensor)


def test_maxout(tested_backend):
    X, pairs = data(), start((3 * H, P), (K, H), (3 * H, K), (P, H))
    model = ours(X, pairs, tested_backend, hidden_layer_sizes=(H,), activation=fastae.Maxout(3))
    parameters = tensors(pairs)

    def layer(x, i):
        return F.linear(x, parameters[2 * i], parameters[2 * i + 1])

    def loss(x):
        h = layer(x, 0).reshape(-1, 3, H).amax(dim=1)
        h = layer(layer(h, 1), 2).reshape(-1, 3, H).amax(dim=1)
        return F.mse_loss(layer(h, 3), x)

    assert model.loss_ == pytest.approx(train(X, parameters, loss), rel=1e-12)
    for array, tensor in zip([a for pair in model.weights_ for a in pair], parameters, strict=True):
        close(array, tensor)


@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_normalisation(tested_backend, kind):
    X, pairs = data(), start((H, P), (K, H), (H, K), (P, H))
    model = ours(X, pairs, tested_backend, hidden_layer_sizes=(H,), activation="tanh", normalization=kind)
    layers = []
    for i, (w, b) in enumerate(pairs):
        linear = torch.nn.Linear(w.shape[1], w.shape[0], dtype=torch.float64)
        linear.weight.data[:], linear.bias.data[:] = torch.from_numpy(w), torch.from_numpy(b)
        norm = torch.nn.BatchNorm1d(H, dtype=torch.float64) if kind == "batch" else torch.nn.LayerNorm(
            H, dtype=torch.float64)  # fmt: skip
        layers += [linear] if i in (1, 3) else [linear, norm, torch.nn.Tanh()]
    net = torch.nn.Sequential(*layers)
    assert model.loss_ == pytest.approx(train(X, list(net.parameters()), lambda x: F.mse_loss(net(x), x)), rel=1e-11)
    for norm, layer in zip([n for n in model.norms_ if n], [net[1], net[5]], strict=True):
        close(norm["gamma"], layer.weight)
        close(norm["beta"], layer.bias)
        if kind == "batch":
            close(norm["mean"], layer.running_mean)
            close(norm["var"], layer.running_var)
    net.eval()
    with torch.inference_mode():
        np.testing.assert_allclose(model.reconstruct(X), net(torch.from_numpy(X)).numpy(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "softplus", "gelu", "silu", "elu"])
def test_the_contractive_penalty(tested_backend, activation):
    X, pairs = data(), start((K, P), (P, K))
    model = ours(X, pairs, tested_backend, code_activation=activation, penalties=fastae.Contractive(0.3, "exact"))
    parameters = tensors(pairs)
    w, b, v, c = parameters
    a = {"sigmoid": torch.sigmoid, "tanh": torch.tanh}.get(activation) or getattr(F, activation)

    def loss(x):
        jacobian = torch.func.vmap(torch.func.jacrev(lambda row: a(F.linear(row, w, b))))(x)
        return F.mse_loss(F.linear(a(F.linear(x, w, b)), v, c), x) + 0.3 * jacobian.square().sum() / len(x)

    assert model.loss_ == pytest.approx(train(X, parameters, loss), rel=1e-10)
    for array, tensor in zip([a for pair in model.weights_ for a in pair], parameters, strict=True):
        close(array, tensor)
