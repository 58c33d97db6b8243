"""Training of published packages and fastae's, from the same weights on the same rows; and checkpoints as estimators.

A test skips where its package is not installed. Gradients are compared in float64 before any projection, as the
packages keep decoder rows at unit norm outside of their losses. What cannot be reproduced says so at its place.
"""

import importlib

import numpy as np
import pytest
import sparse_files
from conftest import named
from sparse_numpy import decode, encode
from test_sparse_gradients import Problem
from test_sparse_packages import DICTIONARIES, SAELENS, package, randomise, rows, saelens_class
from test_sparse_packages import K as K_FILE
from test_sparse_packages import N as N_FILE
from test_sparse_packages import P as P_FILE

import fastae
from fastae import SparseAutoencoder
from fastae.backends import get_backend
from fastae.io.sparse_checkpoints import read
from fastae.plan import schema
from fastae.plan.sparse import LOSS, OTHER
from fastae.spec import sparse as s

pytestmark = pytest.mark.filterwarnings("ignore")
P, N, K, M, STRENGTH = 8, 60, 3, 13, 0.7  # STRENGTH: what Problem.run multiplies every penalty with


@pytest.fixture(params=["reference", "native"])
def machine(request):
    if request.param == "native":
        pytest.importorskip("fastae._core", reason="no compiled kernels")
    return get_backend(request.param)


def problem_of(machine, sparsity, unit_rows=True, **options):
    """A plan with random parameters, decoder rows of norm 1 or not, gradients never projected."""
    options = {"n_components": N, "k": K, "unit_norm": False, "dead_after": 10} | options
    problem = Problem(s.sparse_network(P, sparsity=sparsity, **options), machine, m=M)
    if unit_rows:
        problem.view("decoder")[...] /= np.linalg.norm(problem.view("decoder"), axis=1, keepdims=True)
    return problem


def gradients(problem):
    """Objective and gradients of one step, by parameter."""
    values = problem.run(schema.GRADIENT)
    return values[LOSS] + values[OTHER], {n: problem.view(f"d{n}").copy() for n, _, _ in problem.network.parameters}


def compare(problem, loss, theirs, tolerance=1e-10, names=None):
    """``theirs``: arrays by parameter, (n, p) as ours; the tolerance is relative to a parameter's largest."""
    mine, ours = gradients(problem)
    assert mine == pytest.approx(float(loss), rel=tolerance)
    assert set(theirs) == set(ours)
    for name in names or theirs:
        theirs_, ours_ = np.asarray(theirs[name]).reshape(ours[name].shape), ours[name]
        size = np.abs(theirs_).max()
        assert size > 1e-6, f"{name}: nothing to compare"
        np.testing.assert_allclose(ours_, theirs_, rtol=tolerance, atol=tolerance * size, err_msg=name)


# ---- SAELens ---

_SAELENS_NAMES = {
    "encoder": "W_enc", "encoder_bias": "b_enc", "decoder": "W_dec", "decoder_bias": "b_dec", "threshold": "threshold",
    "gate_bias": "b_gate", "magnitude_bias": "b_mag", "magnitude_log_scale": "r_mag",
}  # fmt: skip


def saelens_twin(problem, cls, coefficients, **options):
    """A training SAE with the problem's parameters; its loss and gradients after one backward pass."""
    make, config = saelens_class(cls)
    import torch

    step_input = importlib.import_module("sae_lens.saes.sae").TrainStepInput
    sae = make(config(d_in=P, d_sae=N, dtype="float64", **options))
    names = {name: _SAELENS_NAMES[name] for name, _, _ in problem.network.parameters}
    parameters = dict(sae.named_parameters())
    assert set(parameters) == set(names.values())
    with torch.no_grad():
        for name, other in names.items():
            value = torch.from_numpy(problem.view(name).copy())
            parameters[other].copy_(value.T if name == "encoder" else value.reshape(parameters[other].shape))
    x = torch.from_numpy(problem.sources[0].data)
    dead = torch.from_numpy(problem.view("since")[0] >= problem.network.dead_after)
    out = sae.training_forward_pass(step_input(x, coefficients, dead, 0, False))
    out.loss.backward()
    grads = {name: parameters[other].grad.numpy() for name, other in names.items()}
    return out, grads | {"encoder": grads["encoder"].T}


@pytest.mark.parametrize("unit_rows", [True, False])
def test_saelens_standard(machine, unit_rows):
    """L1 weighted by decoder norms, whose gradient reaches the decoder."""
    problem = problem_of(machine, s.ReLUCode(0.3), unit_rows)
    out, theirs = saelens_twin(problem, "StandardTrainingSAE", {"l1": 0.3 * STRENGTH})
    compare(problem, out.loss.item(), theirs)


@pytest.mark.parametrize("unit_rows", [True, False])
def test_saelens_gated(machine, unit_rows):
    problem = problem_of(machine, s.Gated(0.3, weighted=True, detached=False), unit_rows)
    out, theirs = saelens_twin(problem, "GatedTrainingSAE", {"l1": 0.3 * STRENGTH})
    compare(problem, out.loss.item(), theirs)


@pytest.mark.parametrize("unit_rows", [True, False])
@pytest.mark.parametrize("logarithm", [False, True])
@pytest.mark.parametrize("kind", ["step", "tanh", "row_quadratic"])
def test_saelens_jumprelu(machine, kind, logarithm, unit_rows):
    """The step's and JumpReLU's straight-through estimates at the package's bandwidth.

    SAELens 6.54 learns θ itself, in float32; earlier ones and Gemma Scope log θ, which is θ's gradient times θ. Its
    "quadratic" is 2/target·(L0 − target)² of each row's own L0, 2·target times ours. Not compared:
    ``jumprelu_ste_to_input``; the pre-activation loss.
    """
    bandwidth, theta, target = 0.5, 0.25, 4.0  # in float32 exactly; wide enough for some pre-activations to be near
    options = {"bandwidth": bandwidth, "threshold": theta, "logarithm": logarithm, "target_l0": target}
    problem = problem_of(machine, s.JumpReLU(0.3, kind, **options), unit_rows)
    stored = problem.view("threshold").copy()
    problem.view("threshold")[...] = theta
    quadratic = kind == "row_quadratic"
    coefficient = 0.3 * STRENGTH / (2 * target if quadratic else 1)
    out, theirs = saelens_twin(problem, "JumpReLUTrainingSAE", {"l0": coefficient},
                               jumprelu_bandwidth=bandwidth, target_l0=target,
                               jumprelu_sparsity_loss_mode="quadratic" if quadratic else kind)  # fmt: skip
    problem.view("threshold")[...] = stored
    if logarithm:
        theirs["threshold"] = theirs["threshold"] * theta
    # a loss of float32 counts of active latents there
    compare(problem, out.loss.item(), theirs, 1e-6 if quadratic else 1e-10, set(theirs) - {"threshold"})
    _, ours = gradients(problem)
    np.testing.assert_allclose(ours["threshold"][0], theirs["threshold"], rtol=1e-6, atol=1e-6)  # float32 there


def some_dead(problem, k_aux):
    """That each row has k_aux dead latents with positive pre-activations."""
    z = (problem.sources[0].data - problem.view("decoder_bias")) @ problem.view("encoder").T
    z = (z + problem.view("encoder_bias"))[:, problem.view("since")[0] >= problem.network.dead_after]
    assert ((z > 0).sum(axis=1) >= k_aux).all() and z.shape[1] >= k_aux


@pytest.mark.parametrize("n_dead", [3, 20])
@pytest.mark.parametrize("rescale", [True, False])
def test_saelens_topk(machine, rescale, n_dead):
    """Auxiliary loss and dead latents; on unit rows, selecting on z‖d‖ and decoding f/‖d‖ is the same function.

    Its AuxK has no relu: among few dead latents negative pre-activations are decoded too. That of OpenAI, sparsify and
    dictionary_learning, our default, has one: the two agree where enough are positive, which biases see to here.
    """
    problem = problem_of(machine, s.TopK(aux=s.AuxK(strength=1.0, norm="none", scaled=True)))
    since = problem.view("since")[0]
    since[:] = 0
    since[7 : 7 + n_dead] = 100
    if n_dead < P // 2:
        problem.view("encoder_bias")[0, since > 0] = 6.0
        problem.view("encoder_bias")[0, since == 0] = 12.0
    some_dead(problem, min(P // 2, n_dead))
    out, theirs = saelens_twin(problem, "TopKTrainingSAE", {}, k=K, rescale_acts_by_decoder_norm=rescale)
    assert out.losses["auxiliary_reconstruction_loss"].item() > 0
    compare(problem, out.loss.item(), theirs)
    _, ours = gradients(problem)
    assert (np.abs(ours["encoder"][since > 0]).sum(1) > 0).sum() >= 3


def test_saelens_aux_without_relu(machine):
    """Where dead latents are negative the two differ, as the docstring above says, unless ``relu=False``."""
    for relu in (True, False):
        problem = problem_of(machine, s.TopK(aux=s.AuxK(strength=1.0, norm="none", scaled=True, relu=relu)))
        problem.view("encoder_bias")[0, ::3] = -9.0  # the dead ones of Problem
        out, theirs = saelens_twin(problem, "TopKTrainingSAE", {}, k=K)
        _, ours = gradients(problem)
        assert np.abs(theirs["encoder"][::3]).max() > 1e-3 and ours["encoder"][::3].any() == (not relu)
    compare(problem, out.loss.item(), theirs)


@pytest.mark.parametrize("over", ["batch_topk", "matryoshka"])
def test_saelens_batch_topk(machine, over):
    aux = s.AuxK(strength=1.0, norm="none", scaled=True)
    options, sparsity = {"k": float(K)}, s.BatchTopK(aux=aux)
    if over == "matryoshka":
        options |= {"matryoshka_widths": [9, 24, N]}
        sparsity = s.Matryoshka((9, 15, N - 24), sparsity, "sum")
    problem = problem_of(machine, sparsity)
    some_dead(problem, P // 2)
    cls = {"batch_topk": "BatchTopKTrainingSAE", "matryoshka": "MatryoshkaBatchTopKTrainingSAE"}[over]
    out, theirs = saelens_twin(problem, cls, {}, **options)
    assert out.losses["auxiliary_reconstruction_loss"].item() > 0
    compare(problem, out.loss.item(), theirs)


# ---- sparsify ---


def sparsify_twin(problem, alpha, multi, fused=True, monkeypatch=None):
    sparsify = package("sparsify")
    import torch

    module = importlib.import_module("sparsify.sparse_coder")
    if not fused:

        def plain(x, weight, bias, k, activation):
            pre = torch.relu(torch.nn.functional.linear(x, weight, bias))
            return module.EncoderOutput(*pre.topk(k, sorted=False), pre)

        monkeypatch.setattr(module, "fused_encoder", plain)
    coder = sparsify.SparseCoder(P, sparsify.SparseCoderConfig(num_latents=N, k=K, multi_topk=multi),
                                 dtype=torch.float64)  # fmt: skip
    names = {"encoder": coder.encoder.weight, "encoder_bias": coder.encoder.bias, "decoder": coder.W_dec,
             "decoder_bias": coder.b_dec}  # fmt: skip
    with torch.no_grad():
        for name, parameter in names.items():
            parameter.copy_(torch.from_numpy(problem.view(name).copy()).reshape(parameter.shape))
    dead = torch.from_numpy(problem.view("since")[0] >= problem.network.dead_after)
    out = coder(torch.from_numpy(problem.sources[0].data), dead_mask=dead)
    loss = out.fvu + alpha * out.auxk_loss + out.multi_topk_fvu / 8
    loss.backward()
    return loss.item(), {name: parameter.grad.numpy() for name, parameter in names.items()}


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.25])
def test_sparsify(machine, alpha, multi, monkeypatch):
    """fvu + α AuxK + MultiTopK / 8. Its fused encoder's backward pass ignores the pre-activations' gradient, from which
    AuxK and MultiTopK are made: encoder, its bias and what reaches the decoder's bias through the input are those of
    the plain loss, so that AuxK never moves a dead latent's encoder row. The decoder's gradient, and all of them with
    an encoder of ordinary operations in its place, are ours.
    """
    aux = s.AuxK(strength=alpha, norm="target", scaled=True) if alpha else None
    problem = problem_of(machine, s.TopK(aux=aux, multi=s.MultiTopK() if multi else None), loss="normalized")
    loss, theirs = sparsify_twin(problem, alpha, multi)
    compare(problem, loss, theirs, names=["decoder"])
    plain = problem_of(machine, s.TopK(aux=None), loss="normalized")
    _, without = gradients(plain)
    _, ours = gradients(problem)
    np.testing.assert_allclose(theirs["encoder"], without["encoder"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(theirs["encoder_bias"], without["encoder_bias"][0], rtol=1e-10, atol=1e-12)
    alone = (problem.view("since")[0] > 0) & ~without["encoder"].any(axis=1)  # dead latents that no row chose
    assert alone.sum() >= 5 and not theirs["encoder"][alone].any()
    assert ours["encoder"][alone].any() == bool(alpha or multi)
    loss, theirs = sparsify_twin(problem, alpha, multi, False, monkeypatch)
    compare(problem, loss, theirs)


# ---- dictionary_learning ---


@pytest.mark.parametrize("alpha", [1 / 32, 0.0])
def test_dictionary_learning_training(alpha):
    """50 steps of its TopKTrainer: clipping, projection, AuxK, Adam, unit rows, on the weights that it began with.

    It counts a step's rows before it asks who is dead, fastae (like sparsify and SAELens) afterwards: a threshold
    higher by one batch says the same of latents that stay dead, as these do.
    """
    trainer_class = pytest.importorskip("dictionary_learning.trainers.top_k", exc_type=ImportError).TopKTrainer
    import torch

    p, n, k, m, steps, rate, dead_after = 16, 64, 4, 64, 50, 2e-3, 1000
    rng = np.random.default_rng(0)
    batches = (rng.normal(size=(steps, m, 6)) ** 3 @ rng.normal(size=(6, p)) + rng.normal(size=(steps, m, p))).astype(
        "f4"
    )
    trainer = trainer_class(steps, p, n, k, 0, "", lr=rate, auxk_alpha=alpha, warmup_steps=0, seed=0, device="cpu")
    ae, dead = trainer.ae, np.arange(n) % 4 == 0
    trainer.dead_feature_threshold = dead_after + m
    trainer.num_tokens_since_fired[torch.from_numpy(dead)] = 10 * dead_after
    with torch.no_grad():
        ae.encoder.weight[torch.from_numpy(dead)] *= 0.02  # positive on half of the rows, and never among the largest
    top_k = importlib.import_module("dictionary_learning.trainers.top_k")
    start = [t.detach().numpy().copy() for t in (ae.encoder.weight, ae.encoder.bias, ae.decoder.weight.T)]
    median = top_k.geometric_median(torch.from_numpy(batches[0])).numpy()
    aux = fastae.AuxK(strength=alpha) if alpha else None
    model = SparseAutoencoder.from_arrays(
        *start, median, sparsity=fastae.TopK(k, aux=aux), unit_norm=True, dead_after=dead_after, learning_rate=rate,
        solver=fastae.Adam(clip_norm=1.0), batch_size=m, shuffle=False,
    )  # fmt: skip
    model.rows_since_fired_[dead] = 10 * dead_after
    losses = []
    for step in range(steps):
        losses.append(trainer.update(step, torch.from_numpy(batches[step])))
        model.partial_fit(batches[step])
    np.testing.assert_allclose(model.loss_curve_, losses, rtol=2e-5)
    assert losses[-1] < 0.9 * losses[0]
    theirs = [t.detach().numpy() for t in (ae.encoder.weight, ae.encoder.bias, ae.decoder.weight.T, ae.b_dec)]
    names = ("encoder", "encoder_bias", "decoder", "decoder_bias")
    for name, wanted in zip(names, theirs, strict=True):
        # Adam's steps are ±rate whatever a gradient's size: rounding moves a weight by a small part of one
        np.testing.assert_allclose(model.arrays_[name], wanted, rtol=1e-4, atol=0.02 * rate, err_msg=name)
    assert (model.rows_since_fired_[dead] > 10 * dead_after).all()
    assert (model.rows_since_fired_[~dead] < dead_after).all()
    for encoder in (model.arrays_["encoder"], theirs[0]):
        moved = np.abs(encoder - start[0])[dead].max(axis=1) > 5 * rate
        assert moved.all() if alpha else not moved.any()


@pytest.mark.parametrize("warmup", [0.0, 0.5])
def test_dictionary_learning_jumprelu(machine, warmup):
    """Its quadratic penalty has the batch's mean L0, as ours. Its step is of the code, not of the pre-activation, so
    that only the upper half of the window counts there, as with ``window="above"``. (Where θ < bandwidth / 2 all its
    zeros are in the window; ours has no such entries.)
    """
    trainer_class = pytest.importorskip("dictionary_learning.trainers.jumprelu", exc_type=ImportError).JumpReluTrainer
    import torch

    bandwidth, theta, target, scale = 0.125, 0.25, 4.0, 1.0 - warmup
    options = {"bandwidth": bandwidth, "threshold": theta, "logarithm": False, "window": "above"}
    problem = problem_of(machine, s.JumpReLU(scale / STRENGTH, "quadratic", target, **options), pre_bias=False)
    trainer = trainer_class(10, P, N, 0, "", bandwidth=bandwidth, sparsity_penalty=1.0, warmup_steps=0,
                            sparsity_warmup_steps=0, target_l0=target)  # fmt: skip
    trainer.sparsity_warmup_fn = lambda step: scale
    ae = trainer.ae.double()
    names = {"encoder": ae.W_enc, "encoder_bias": ae.b_enc, "threshold": ae.threshold, "decoder": ae.W_dec,
             "decoder_bias": ae.b_dec}  # fmt: skip
    with torch.no_grad():
        for name, parameter in names.items():
            value = torch.from_numpy(problem.view(name).copy())
            parameter.copy_(value.T if name == "encoder" else value.reshape(parameter.shape))
    x = torch.from_numpy(problem.sources[0].data)
    loss = trainer.loss(x, 0)
    loss.backward()
    theirs = {name: parameter.grad.numpy() for name, parameter in names.items()}
    theirs["encoder"] = theirs["encoder"].T
    compare(problem, loss.item(), theirs, 1e-6, set(theirs) - {"threshold"})  # its steps are counted in float32
    z = (x @ ae.W_enc + ae.b_enc).detach().numpy()
    below = (z <= theta) & (z > theta - bandwidth / 2)
    assert 0 < below.sum() and ((z > theta) & (z < theta + bandwidth / 2)).any()
    _, ours = gradients(problem)
    np.testing.assert_allclose(ours["threshold"][0], theirs["threshold"], rtol=1e-6, atol=1e-6)


# ---- checkpoints as estimators ---


def scattered(values, indices, n):
    import torch

    return torch.zeros(len(values), n).scatter_(1, indices.long(), values).detach().numpy()


def same_codes(model, x, code, output, tolerance=2e-5):
    code = np.asarray(code)
    mine = model.transform(x).toarray()
    assert (code != 0).any() and (code == 0).any()
    np.testing.assert_array_equal(mine != 0, code != 0)
    np.testing.assert_allclose(mine, code, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(model.reconstruct(x), output, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SAELENS)
def test_saelens_estimator(name, tmp_path):
    """The package's files → estimator → the package again, the same codes all along."""
    cls, options, _ = SAELENS[name]
    make, config = saelens_class(cls)
    sae, x = randomise(make(config(d_in=P_FILE, d_sae=N_FILE, **options))), rows()
    code, output = sae.encode(x).detach().numpy(), sae(x).detach().numpy()
    sae.save_model(tmp_path / "theirs")
    model = SparseAutoencoder.from_pretrained(tmp_path / "theirs")
    assert model.source_["format"] == "saelens"
    same_codes(model, x.numpy(), code, output)
    model.save_pretrained(tmp_path / "ours")
    again = make.load_from_disk(tmp_path / "ours")
    same_codes(model, x.numpy(), again.encode(x).detach().numpy(), again(x).detach().numpy())


@pytest.mark.parametrize("options", [{}, {"transcode": True}, {"skip_connection": True},
                                     {"transcode": True, "skip_connection": True}])  # fmt: skip
def test_sparsify_estimator(options, tmp_path):
    sparsify = package("sparsify")
    coder, x = (
        randomise(sparsify.SparseCoder(P_FILE, sparsify.SparseCoderConfig(num_latents=N_FILE, k=K_FILE, **options))),
        rows(),
    )
    coder.save_to_disk(tmp_path / "theirs")
    model = SparseAutoencoder.from_pretrained(tmp_path / "theirs")
    model.save_pretrained(tmp_path / "ours", "sparsify")
    for one in (coder, sparsify.SparseCoder.load_from_disk(tmp_path / "ours")):
        values, indices, _ = one.encode(x)
        same_codes(model, x.numpy(), scattered(values, indices, N_FILE), one(x).sae_out.detach().numpy())


@pytest.mark.parametrize("threshold", [-1.0, 1.3])
@pytest.mark.parametrize("name", DICTIONARIES)
def test_dictionary_learning_estimator(name, threshold, tmp_path):
    """Also a batch_topk without a threshold yet (−1): codes are then all positive pre-activations, there as here."""
    module, options, _ = DICTIONARIES[name]
    package("dictionary_learning")
    import json

    import torch

    sae, x = (
        randomise(getattr(importlib.import_module(f"dictionary_learning.{module}"), name)(P_FILE, N_FILE, *options)),
        rows(),
    )
    if "threshold" in dict(sae.named_buffers()):
        sae.threshold.fill_(threshold)
    torch.save(sae.state_dict(), tmp_path / "ae.pt")
    trainer = {"dict_class": name, "activation_dim": P_FILE, "dict_size": N_FILE, "lr": 0.1}
    trainer |= {"k": K_FILE} if options else {}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    code = sae.encode(x)
    same_codes(
        SparseAutoencoder.from_pretrained(tmp_path), x.numpy(), code.detach().numpy(), sae.decode(code).detach().numpy()
    )


FITTED = {
    "topk": {}, "abs_topk": {}, "batch_topk": {}, "matryoshka": {}, "relu": {"sparsity": s.ReLUCode(0.05)},
    "jumprelu": {"sparsity": s.JumpReLU(0.01, bandwidth=0.1, threshold=0.1)}, "gated": {"sparsity": s.Gated(0.05)},
    "scaled": {"sparsity": "topk", "normalization": "scale"}, "layer": {"sparsity": "relu", "normalization": "layer"},
}  # fmt: skip


@pytest.mark.parametrize("kind, format", [*((kind, "saelens") for kind in FITTED), ("topk", "sparsify"),
                                          ("scaled", "sparsify")])  # fmt: skip
def test_fitted_models_in_packages(kind, format, tmp_path):
    """Models trained here, saved, loaded and run there."""
    package({"saelens": "sae_lens", "sparsify": "sparsify"}[format])
    x = rows(m=300)
    options = {"sparsity": kind, "random_state": 0, "learning_rate": 3e-3, "max_iter": 3} | FITTED[kind]
    model = SparseAutoencoder(N_FILE, k=K_FILE, **options).fit(x.numpy())
    model.save_pretrained(tmp_path, format)
    if format == "saelens":
        from sae_lens import SAE

        sae = SAE.load_from_disk(tmp_path)
        code, output = sae.encode(x).detach().numpy(), sae(x).detach().numpy()
    else:
        import sparsify

        sae = sparsify.SparseCoder.load_from_disk(tmp_path)
        values, indices, _ = sae.encode(x)
        code, output = scattered(values, indices, N_FILE), sae(x).sae_out.detach().numpy()
    same_codes(model, x.numpy(), code, output)


F = sparse_files
HAND_MADE = {
    "saelens": lambda path: F.folder(path, F.saelens(k=F.K)),
    "sparsify": lambda path: F.folder(path, F.sparsify()),
    "dictionary_learning": lambda path: F.folder(path, F.dictionary("AutoEncoderTopK", F.LAYERS | {
        "b_dec": F.W["decoder_bias"], "k": F.COUNT, "threshold": np.array(0.3, "f4")}, k=F.K)),
    "openai": lambda path: F.folder(path, F.openai(**F.TOPK)),
    "gemma_scope": lambda path: F.gemma_scope(path),
    "gemma_scope_2": lambda path: (F.gemma_scope_2(path), path)[1],
    "llama_scope": lambda path: (F.llama_scope(path), path)[1],
    "language_model_saes": lambda path: F.folder(path, F.language_model_saes()),
    "sentence_transformers": lambda path: F.folder(path, F.sentence_transformers()),
    # of the same formats, what else an estimator must take from a checkpoint
    "saelens, skip transcoder": lambda path: F.folder(path, skip_transcoder()),
    "sparsify, skip": lambda path: F.folder(path, with_skip()),
    "dictionary_learning, batch_topk": lambda path: F.folder(path, F.dictionary("BatchTopKSAE", F.LAYERS | {
        "b_dec": F.W["decoder_bias"], "k": F.COUNT, "threshold": np.array(0.25, "f4")}, k=F.K)),
    "dictionary_learning, gated": lambda path: F.folder(path, F.dictionary("GatedAutoEncoder", {
        name: F.LAYERS[name] for name in ("encoder.weight", "decoder.weight")} | F.GATES | {
            "decoder_bias": F.W["decoder_bias"]})),
    "gemma_scope_2, affine": lambda path: (F.gemma_scope_2(path, kind="affine"), path)[1],
    "language_model_saes, topk": lambda path: F.folder(path, F.language_model_saes(
        act_fn="topk", sparsity_include_decoder_norm=True)),
    "sentence_transformers, normalised": lambda path: F.folder(path, F.sentence_transformers(normalize=True)),
}  # fmt: skip


def skip_transcoder():
    files = F.saelens("jumprelu_skip_transcoder", F.Q, d_out=F.Q, apply_b_dec_to_input=False)
    files["sae_weights.safetensors"] |= {"threshold": F.positive(F.N), "W_skip": F.array(F.Q, F.P)}
    return files


def with_skip():
    files = F.sparsify(skip_connection=True)
    files["sae.safetensors"] |= {"W_skip": F.array(F.P, F.P)}
    return files


@pytest.mark.parametrize("case", HAND_MADE)
def test_hand_made_estimators(case, tmp_path, backend):
    """Every format without its package: the estimator's codes and outputs against plain NumPy."""
    path = HAND_MADE[case](tmp_path)
    checkpoint, x = read(path), F.array(50, F.P, seed=9)
    model = SparseAutoencoder.from_pretrained(path)
    assert model.source_["format"] == case.split(",")[0]
    model.backend = named(backend)
    code = encode(checkpoint, x)
    same_codes(model, x, code, decode(checkpoint, code, x))
