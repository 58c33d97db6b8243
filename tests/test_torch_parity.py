"""Twenty steps of Adam on the same batches as PyTorch."""

import numpy as np
import pytest

import fastae

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.mark.parametrize("loss", ["squared_error", "binary_cross_entropy"])
@pytest.mark.parametrize("solver", ["adam", "adamw", "sgd", "rmsprop", "adagrad", "amsgrad", "momentum", "nesterov"])
def test_twenty_steps(tested_backend, loss, solver):
    rng = np.random.default_rng(0)
    X = rng.uniform(size=(20 * 16, 11))
    widths = (11, 23, 5, 23, 11)
    pairs = [(rng.normal(size=(n, k)) / k**0.5, rng.normal(size=n) * 0.1)
             for k, n in zip(widths, widths[1:], strict=False)]  # fmt: skip
    model = fastae.Autoencoder(
        5, hidden_layer_sizes=(23,), activation="tanh", loss=loss, solver=solver, learning_rate=0.01, batch_size=16,
        max_iter=1, shuffle=False, initializer=pairs, backend=tested_backend,
    ).fit(X)  # fmt: skip

    layers = []
    for i, (w, b) in enumerate(pairs):
        layer = torch.nn.Linear(w.shape[1], w.shape[0], dtype=torch.float64)
        layer.weight.data[:], layer.bias.data[:] = torch.from_numpy(w), torch.from_numpy(b)
        layers += [layer] if i in (1, 3) else [layer, torch.nn.Tanh()]
    net = torch.nn.Sequential(*layers)
    make = {
        "adam": lambda p: torch.optim.Adam(p, 0.01),
        "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.01),
        "amsgrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
        "sgd": lambda p: torch.optim.SGD(p, 0.01),
        "momentum": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
        "nesterov": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True),
        "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01),
        "adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
    }
    optimizer = make[solver](net.parameters())
    criterion = torch.nn.MSELoss() if loss == "squared_error" else torch.nn.BCEWithLogitsLoss()
    T = torch.from_numpy(X)
    losses = []
    for start in range(0, len(X), 16):
        x = T[start : start + 16]
        optimizer.zero_grad()
        value = criterion(net(x), x)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert model.loss_ == pytest.approx(np.mean(losses), rel=1e-12)
    linear = [layer for layer in net if isinstance(layer, torch.nn.Linear)]
    for (w, b), layer in zip(model.weights_, linear, strict=True):
        np.testing.assert_allclose(w, layer.weight.detach().numpy(), rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(b, layer.bias.detach().numpy(), rtol=1e-9, atol=1e-11)
