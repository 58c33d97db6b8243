"""Real data, where it is at hand: see README for FASTAE_DATA."""

import numpy as np
import pytest
from scipy import sparse

import fastae


@pytest.fixture(scope="module")
def mnist(data_dir):
    """(60000, 784) and the first 3,000 test digits, uint8."""
    with np.load(data_dir / "mnist_63k.npz") as file:
        return file["x_train"].reshape(-1, 784), file["x_test"].reshape(-1, 784)


def test_mnist_in_two_epochs(mnist):
    train, test = (part[:6000] / np.float32(255) for part in mnist)
    model = fastae.Autoencoder(32, hidden_layer_sizes=(128,), loss="binary_cross_entropy", max_iter=5, batch_size=64,
                               learning_rate=2e-3, random_state=0).fit(train)  # fmt: skip
    p = np.clip(model.reconstruct(test), 1e-7, 1 - 1e-7)
    assert -(test * np.log(p) + (1 - test) * np.log1p(-p)).mean() < 0.145


def test_bytes_are_read_directly(mnist):
    train = mnist[0][:500]
    a = fastae.Autoencoder(8, max_iter=2, random_state=0).fit(train)
    b = fastae.Autoencoder(8, max_iter=2, random_state=0).fit(train.astype(np.float32))
    np.testing.assert_array_equal(a.weights_[0][0], b.weights_[0][0])


def test_newsgroups_as_csr(data_dir):
    words = sparse.load_npz(data_dir / "20ng_train_bow.npz").tocsr()[:800]
    model = fastae.Autoencoder(20, activation="tanh", loss="multinomial", max_iter=3, random_state=0).fit(words)
    assert model.loss_curve_[-1] < model.loss_curve_[0]
    assert model.transform(words).shape == (800, 20)


def test_memmap_of_float16_activations(data_dir):
    rows = np.load(data_dir / "minilm_layer4_activations_f16.npy", mmap_mode="r")[:2000]
    model = fastae.Autoencoder(16, activation="identity", max_iter=2, random_state=0).fit(rows)
    assert model.weights_[0][0].dtype == np.float32
    assert np.isfinite(model.score(rows))


@pytest.mark.slow
def test_mnist_784_32_784(mnist):
    train, test = (part / np.float32(255) for part in mnist)
    model = fastae.Autoencoder(32, loss="binary_cross_entropy", max_iter=50, tol=0.0, random_state=0).fit(train)
    p = np.clip(model.reconstruct(test).astype(float), 1e-12, 1 - 1e-12)
    loss = -(test * np.log(p) + (1 - test) * np.log1p(-p)).mean()
    assert loss <= 0.095, loss
