"""Published packages and fastae on the same sparse autoencoders: their files read here, ours loaded there.

A test skips where its package is not installed. The order of a package's indices within a row means nothing, so codes
are compared scattered. Reconstructions and codes are float32 there and float64 in the reference.
"""

import importlib
import json
import os
import warnings

import numpy as np
import pytest
from sparse_numpy import decode, encode

from fastae.io.sparse_checkpoints import read, write

os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
pytestmark = pytest.mark.filterwarnings("ignore")
P, N, K, M = 12, 40, 5, 30


def package(name):
    """A module, or a visible skip; the warnings of its imports are its own affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torch", reason="PyTorch is not installed")
        return pytest.importorskip(name, reason=f"{name} is not installed", exc_type=ImportError)


def randomise(module, seed=0):
    """Every parameter random, few thresholds negative, decoder rows of different lengths."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator) * (0.4 if parameter.ndim == 1 else 0.6)
            parameter.copy_(values.abs() - 0.1 if "threshold" in name else values)
    return module.eval()


def rows(seed=1, m=M, p=P):
    import torch

    return torch.randn(m, p, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5


def same(checkpoint, x, code, output, tolerance=2e-5):
    """The reference's code and output from a checkpoint against a package's."""
    mine = encode(checkpoint, x.numpy())
    theirs = code.detach().double().numpy()
    assert (theirs != 0).any() and (theirs == 0).any()
    np.testing.assert_array_equal(mine != 0, theirs != 0)
    np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance)
    if output is not None:
        np.testing.assert_allclose(decode(checkpoint, mine, x.numpy()), output.detach().numpy(), rtol=1e-4, atol=1e-4)


# ---- SAELens ---

SAELENS = {
    "standard": ("StandardSAE", {}, "relu"),
    "standard without pre-bias": ("StandardSAE", {"apply_b_dec_to_input": False}, "relu"),
    "standard, layer norm": ("StandardSAE", {"normalize_activations": "layer_norm"}, "relu"),
    "topk": ("TopKSAE", {"k": K}, "topk"),
    "topk rescaled": ("TopKSAE", {"k": K, "rescale_acts_by_decoder_norm": True}, "topk"),
    "topk, layer norm": ("TopKSAE", {"k": K, "normalize_activations": "layer_norm"}, "topk"),
    "abstopk": ("AbsTopKSAE", {"k": K, "rescale_acts_by_decoder_norm": True}, "abs_topk"),
    "jumprelu": ("JumpReLUSAE", {}, "jumprelu"),
    "gated": ("GatedSAE", {}, "gated"),
    "gated without pre-bias": ("GatedSAE", {"apply_b_dec_to_input": False}, "gated"),
    "transcoder": ("Transcoder", {"d_out": 9, "apply_b_dec_to_input": False}, "relu"),
    "skip transcoder": ("SkipTranscoder", {"d_out": 9, "apply_b_dec_to_input": False}, "relu"),
    "jumprelu transcoder": ("JumpReLUTranscoder", {"d_out": 9, "apply_b_dec_to_input": False}, "jumprelu"),
    "transcoder, layer norm": (
        "SkipTranscoder",
        {"d_out": 9, "apply_b_dec_to_input": False, "normalize_activations": "layer_norm"},
        "relu",
    ),
    "jumprelu skip": ("JumpReLUSkipTranscoder", {"d_out": 9, "apply_b_dec_to_input": False}, "jumprelu"),
}


def saelens_class(name):
    package("sae_lens")
    for module in ("sae_lens", "sae_lens.saes", "sae_lens.saes.transcoder", "sae_lens.saes.abstopk_sae"):
        found = vars(importlib.import_module(module))
        if name in found:
            return found[name], found[f"{name}Config"]
    pytest.skip(f"this sae_lens has no {name}")


@pytest.mark.parametrize("name", SAELENS)
def test_saelens(name, tmp_path):
    """Theirs → ours, and ours → theirs, the same codes all along."""
    cls, options, architecture = SAELENS[name]
    make, config = saelens_class(cls)
    sae = randomise(make(config(d_in=P, d_sae=N, **options)))
    x = rows()
    code, output = sae.encode(x), sae(x)
    sae.save_model(tmp_path / "theirs")
    checkpoint = read(tmp_path / "theirs")
    assert checkpoint.architecture == architecture
    same(checkpoint, x, code, output)
    write(tmp_path / "ours", checkpoint, "saelens")
    again = make.load_from_disk(tmp_path / "ours")
    assert type(again) is make
    same(checkpoint, x, again.encode(x), again(x))
    same(read(tmp_path / "ours"), x, code, output)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_saelens_dtypes(dtype, tmp_path):
    """Weights are rounded to the config's dtype as the package rounds them."""
    make, config = saelens_class("StandardSAE")
    randomise(make(config(d_in=P, d_sae=N))).save_model(tmp_path)
    settings = json.loads((tmp_path / "cfg.json").read_text()) | {"dtype": dtype}
    (tmp_path / "cfg.json").write_text(json.dumps(settings))
    sae, checkpoint = make.load_from_disk(tmp_path), read(tmp_path)
    np.testing.assert_array_equal(checkpoint.arrays["encoder"], sae.W_enc.detach().double().numpy().T)
    np.testing.assert_array_equal(checkpoint.arrays["decoder_bias"], sae.b_dec.detach().double().numpy())
    assert checkpoint.arrays["encoder"].dtype == (np.float64 if dtype == "float64" else np.float32)
    sae.save_model(tmp_path / "cast")
    np.testing.assert_array_equal(read(tmp_path / "cast").arrays["encoder"], checkpoint.arrays["encoder"])


TRAINING = {
    "standard": ("StandardTrainingSAE", {}, "relu"),
    "topk": ("TopKTrainingSAE", {"k": K}, "topk"),
    "abstopk": ("AbsTopKTrainingSAE", {"k": K}, "abs_topk"),
    "gated": ("GatedTrainingSAE", {}, "gated"),
    "jumprelu": ("JumpReLUTrainingSAE", {}, "jumprelu"),
    "batchtopk": ("BatchTopKTrainingSAE", {"k": K}, "batch_topk"),
    "matryoshka": ("MatryoshkaBatchTopKTrainingSAE", {"k": K, "matryoshka_widths": [8, 20, N]}, "matryoshka"),
}


@pytest.mark.parametrize("name", TRAINING)
def test_saelens_training_checkpoints(name, tmp_path):
    """A training checkpoint and the package's own export of it are the same model; ours of the first is too."""
    cls, options, architecture = TRAINING[name]
    make, config = saelens_class(cls)
    import torch

    sae = randomise(make(config(d_in=P, d_sae=N, **options)))
    if "topk_threshold" in dict(sae.named_buffers()):
        sae.topk_threshold.copy_(torch.tensor(1.7))
    sae.save_model(tmp_path / "training")
    sae.save_inference_model(tmp_path / "exported")
    training, exported = read(tmp_path / "training"), read(tmp_path / "exported")
    assert training.architecture == architecture
    assert exported.architecture == ("jumprelu" if architecture in ("batch_topk", "matryoshka") else architecture)
    if architecture == "matryoshka":
        assert training.group_sizes == (8, 12, 20)
    from sae_lens import SAE

    theirs, x = SAE.load_from_disk(tmp_path / "exported"), rows()
    code, output = theirs.encode(x), theirs(x)
    same(training, x, code, output)
    same(exported, x, code, output)
    write(tmp_path / "ours", training, "saelens")
    again = SAE.load_from_disk(tmp_path / "ours")
    same(training, x, again.encode(x), again(x))


def test_saelens_before_6(tmp_path):
    """A flat config of old: our reading against the package's conversion."""
    make, config = saelens_class("TopKSAE")
    randomise(make(config(d_in=P, d_sae=N, k=K))).save_model(tmp_path)
    old = {"d_in": P, "d_sae": N, "dtype": "torch.float32", "activation_fn_str": "topk", "hook_point": "blocks.3.x"}
    old |= {
        "activation_fn_kwargs": {"k": K},
        "normalize_activations": None,
        "lr": 0.1,
        "sae_lens_training_version": "3",
    }
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    sae, checkpoint, x = make.load_from_disk(tmp_path), read(tmp_path), rows()
    assert checkpoint.metadata["hook_name"] == "blocks.3.x"
    same(checkpoint, x, sae.encode(x), sae(x))
    write(tmp_path / "new", checkpoint, "saelens")
    again = make.load_from_disk(tmp_path / "new")
    same(checkpoint, x, again.encode(x), again(x))


# ---- formats that SAELens too reads, its downloads answered from a folder ---


def local_hub(monkeypatch, folder):
    package("sae_lens")
    loaders = importlib.import_module("sae_lens.loading.pretrained_sae_loaders")

    def download(repo_id=None, filename=None, subfolder="", force_download=False):
        return str(folder / subfolder / filename)

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    return loaders


def saelens_from(config, state):
    from sae_lens import SAE
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting

    sae = SAE.from_dict(handle_config_defaulting(config))
    sae.load_state_dict(state)
    return sae


def test_llama_scope_as_saelens_reads_it(tmp_path, monkeypatch):
    from sparse_files import llama_scope

    loaders = local_hub(monkeypatch, tmp_path)
    llama_scope(tmp_path / "L0", P, N)
    config, state, _ = loaders.llama_scope_sae_huggingface_loader("x", "L0", cfg_overrides={"dtype": "float32"})
    norm = json.loads((tmp_path / "L0" / "hyperparams.json").read_text())["dataset_average_activation_norm"]["in"]
    sae = saelens_from(config, state)
    sae.fold_activation_norm_scaling_factor(P**0.5 / norm)
    x = rows()
    same(read(tmp_path / "L0"), x, sae.encode(x), sae(x))


@pytest.mark.parametrize("kind", ["sae", "transcoder", "affine"])
def test_gemma_scope_2_as_saelens_reads_it(kind, tmp_path, monkeypatch):
    from sparse_files import gemma_scope_2

    loaders = local_hub(monkeypatch, tmp_path)
    name = "layer_3_resid_post" if kind == "sae" else "layer_3_transcoder"
    tensors = gemma_scope_2(tmp_path / name, P, N, kind)
    shapes = {key: list(value.shape) for key, value in tensors.items()}
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", lambda *_: shapes)
    sae = saelens_from(*loaders.gemma_3_sae_huggingface_loader("x", name)[:2])
    checkpoint, x = read(tmp_path / name), rows()
    assert checkpoint.transcoder == (kind != "sae")
    same(checkpoint, x, sae.encode(x), sae(x))


def test_gemma_scope_as_saelens_reads_it(tmp_path, monkeypatch):
    from sparse_files import gemma_scope

    loaders = local_hub(monkeypatch, tmp_path)
    name = "layer_3/width_16k/average_l0_5"
    gemma_scope(tmp_path / name, P, N)
    try:
        config, state, _ = loaders.gemma_2_sae_huggingface_loader("google/gemma-scope-2b-pt-res", name)
    except (KeyError, ValueError) as error:
        pytest.skip(f"this sae_lens reads Gemma Scope in another way: {error}")
    sae, x = saelens_from(config | {"d_in": P, "d_sae": N}, state), rows()
    same(read(tmp_path / name), x, sae.encode(x), sae(x))


# ---- sparsify ---


@pytest.mark.parametrize("options", [{}, {"transcode": True}, {"transcode": True, "skip_connection": True},
                                     {"skip_connection": True}, {"num_latents": 0, "expansion_factor": 3}])  # fmt: skip
def test_sparsify(options, tmp_path):
    sparsify = package("sparsify")
    import torch

    options = {"num_latents": N, "k": K} | options
    coder = randomise(sparsify.SparseCoder(P, sparsify.SparseCoderConfig(**options)))
    x = rows()

    def scattered(coder):
        values, indices, _ = coder.encode(x)
        code = torch.zeros(M, coder.num_latents).scatter_(1, indices.long(), values)
        return code, coder(x).sae_out

    coder.save_to_disk(tmp_path / "layers.0")
    checkpoint = read(tmp_path / "layers.0")
    same(checkpoint, x, *scattered(coder))
    write(tmp_path / "ours", checkpoint, "sparsify")
    again = sparsify.SparseCoder.load_from_disk(tmp_path / "ours")
    assert again.cfg.k == K
    same(checkpoint, x, *scattered(again))


def test_saelens_to_sparsify(tmp_path):
    """Rescaled codes and a missing pre-bias come out the same, through another format."""
    sparsify = package("sparsify")
    import torch

    make, config = saelens_class("TopKSAE")
    options = {"k": K, "rescale_acts_by_decoder_norm": True, "apply_b_dec_to_input": False}
    sae, x = randomise(make(config(d_in=P, d_sae=N, **options))), rows()
    sae.save_model(tmp_path / "saelens")
    write(tmp_path / "sparsify", read(tmp_path / "saelens"), "sparsify")
    coder = sparsify.SparseCoder.load_from_disk(tmp_path / "sparsify")
    values, indices, _ = coder.encode(x)
    code = torch.zeros(M, N).scatter_(1, indices.long(), values)
    np.testing.assert_allclose(code.detach().numpy(), sae.encode(x).detach().numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(coder(x).sae_out.detach().numpy(), sae(x).detach().numpy(), rtol=1e-4, atol=1e-4)


# ---- dictionary_learning ---

DICTIONARIES = {
    "AutoEncoder": ("dictionary", (), "relu"),
    "AutoEncoderNew": ("dictionary", (), "relu"),
    "GatedAutoEncoder": ("dictionary", (), "gated"),
    "JumpReluAutoEncoder": ("dictionary", (), "jumprelu"),
    "AutoEncoderTopK": ("trainers.top_k", (K,), "topk"),
    "BatchTopKSAE": ("trainers.batch_top_k", (K,), "batch_topk"),
    "MatryoshkaBatchTopKSAE": ("trainers.matryoshka_batch_top_k", (K, [8, 12, 20]), "matryoshka"),
}


@pytest.mark.parametrize("threshold", [-1.0, 1.3])
@pytest.mark.parametrize("name", DICTIONARIES)
def test_dictionary_learning(name, threshold, tmp_path):
    """Saved as the package's training loop saves, with a threshold and before there is one."""
    module, options, architecture = DICTIONARIES[name]
    package("dictionary_learning")
    import torch

    make = getattr(importlib.import_module(f"dictionary_learning.{module}"), name)
    sae = randomise(make(P, N, *options))
    buffers = dict(sae.named_buffers())
    if "threshold" in buffers:
        buffers["threshold"].fill_(threshold)
    torch.save({key: value.cpu() for key, value in sae.state_dict().items()}, tmp_path / "ae.pt")
    trainer = {"dict_class": name, "activation_dim": P, "dict_size": N, "lr": 0.1, "k": K if options else None}
    trainer = {key: value for key, value in trainer.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    checkpoint, x = read(tmp_path), rows()
    assert checkpoint.architecture == architecture
    with_threshold = (
        {} if architecture not in ("batch_topk", "matryoshka") or threshold > 0 else {"use_threshold": False}
    )
    code = sae.encode(x, **with_threshold)
    same(checkpoint, x, code, sae.decode(code))


# ---- Sentence-Transformers ---


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("safe", [True, False])
def test_sentence_transformers(normalize, safe, tmp_path):
    package("sentence_transformers")
    import torch

    try:
        from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder
    except ImportError:
        from sentence_transformers.sparse_encoder.models import SparseAutoEncoder
    sae = randomise(SparseAutoEncoder(P, N, k=K, k_aux=4, normalize=normalize))
    sae.save(str(tmp_path), safe_serialization=safe)
    checkpoint, x = read(tmp_path), rows()
    with torch.inference_mode():
        code = sae.forward({"sentence_embedding": x})["sentence_embedding"]
        _, info = sae.prepare(x)
    with torch.no_grad():
        output = sae.decode(code.clone(), info)
    same(checkpoint, x, code, output)
