"""SAELens: cfg.json and sae_weights.safetensors, sparsity.safetensors beside it. Read and written.

Weights are W_enc (p, n) and W_dec (n, p_out), rounded on reading to cfg["dtype"], as the package does.

Where there are two readings:

- A config whose ``sae_lens_version`` is older than 6, or missing, is flat and mixed with the training run's whole
  configuration: what is not about the model goes to the metadata. In newer ones an unknown setting is an error.
- ``normalize_activations="expected_average_only_in"``: the package's ``load_from_disk`` does not scale. The factor is
  taken from activation_scaler.json (which training checkpoints have) and folded into the weights, codes being those of
  scaled rows; where that is missing, weights are read as they are, with a warning.
- Thresholds: the package multiplies relu(z) by z > θ, so θ < 0 is read as 0.
- Training checkpoints (batchtopk, matryoshka_batchtopk) are read at inference: their ``topk_threshold`` is the
  threshold. 0, where it starts, means that there is none yet.
- ``rescale_acts_by_decoder_norm`` is folded into the weights: same codes, same outputs.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import SparseCheckpoint, fold_decoder_norm, fold_scale
from .files import (
    Config,
    Tensors,
    folder_for,
    folder_of,
    not_negative,
    read_json,
    read_safetensors,
    transposed,
    write_json,
    write_safetensors,
)

CONFIG, WEIGHTS, SPARSITY, SCALER = (
    "cfg.json",
    "sae_weights.safetensors",
    "sparsity.safetensors",
    "activation_scaler.json",
)
# name in cfg.json: (architecture, transcoder, skip)
NAMES = {
    "standard": ("relu", False, False),
    "topk": ("topk", False, False),
    "abstopk": ("abs_topk", False, False),
    "jumprelu": ("jumprelu", False, False),
    "gated": ("gated", False, False),
    "batchtopk": ("batch_topk", False, False),
    "matryoshka_batchtopk": ("matryoshka", False, False),
    "transcoder": ("relu", True, False),
    "skip_transcoder": ("relu", True, True),
    "jumprelu_transcoder": ("jumprelu", True, False),
    "jumprelu_skip_transcoder": ("jumprelu", True, True),
}
_TOPK = ("topk", "abs_topk", "batch_topk", "matryoshka")
# of training configs; no code depends on them
_TRAINING = frozenset(
    "l1_coefficient lp_norm l1_warm_up_steps decoder_init_norm use_sparse_activations aux_loss_coefficient "
    "topk_threshold_lr use_matryoshka_aux_loss jumprelu_init_threshold jumprelu_bandwidth "
    "jumprelu_sparsity_loss_mode l0_coefficient l0_warm_up_steps pre_act_loss_coefficient jumprelu_tanh_scale "
    "jumprelu_ste_to_input target_l0".split()
)


def _is_old(values: dict) -> bool:
    metadata = values.get("metadata")
    version = values.get("sae_lens_version") or (
        metadata.get("sae_lens_version") if isinstance(metadata, dict) else None
    )
    major = re.match(r"\d+", str(version)) if version else None
    return major is None or int(major[0]) < 6


def _modernised(values: dict) -> dict:
    """Settings from before version 6 under the names of today."""
    renamed = {
        "hook_point": "hook_name",
        "hook_point_head_index": "hook_head_index",
        "activation_fn_str": "activation_fn",
    }
    new = {renamed.get(key, key): value for key, value in values.items()}
    new.setdefault("architecture", "standard")
    kwargs = new.pop("activation_fn_kwargs", None)
    if new.get("activation_fn") == "topk":
        new["architecture"] = "topk"
    if new["architecture"] == "topk" and isinstance(kwargs, dict) and kwargs.get("k") is not None:
        new["k"] = kwargs["k"]
    normalize = new.get("normalize_activations")
    if normalize is None or isinstance(normalize, bool):
        new["normalize_activations"] = "expected_average_only_in" if normalize else "none"
    if "hook_z" in str(new.get("hook_name", "")):
        new.setdefault("reshape_activations", "hook_z")
    return new


def read(path: Any) -> SparseCheckpoint:
    """A SAELens folder: every architecture of the package but `temporal` and `matching_pursuit`."""
    folder = folder_of(path)
    values = read_json(folder / CONFIG)
    old = _is_old(values)
    config = Config(folder / CONFIG, _modernised(values) if old else values)
    name = config.take("architecture", str, "standard")
    if name not in NAMES:
        raise config.error(f"architecture {name!r} is not supported; fastae reads {sorted(NAMES)}")
    architecture, transcoder, skip = NAMES[name]
    p, n = config.size("d_in"), config.size("d_sae")
    p_out = config.size("d_out") if transcoder else p
    dtype = config.take("dtype", str, "float32")
    pre_bias = config.take("apply_b_dec_to_input", bool, not transcoder) and not transcoder
    normalize = config.choice("normalize_activations", ("none", "layer_norm", "expected_average_only_in"), "none")
    why = "rows are expected flat, (rows, d_in), so flatten heads yourself and set"
    config.choice("reshape_activations", ("none",), "none", why)
    average, sizes, rescale = _topk_settings(config, architecture, n)
    k = None if average is None or int(average) != average else int(average)
    if old:
        config.choice("activation_fn", ("relu", "topk"), "relu")
        if config.take("finetuning_scaling_factor", (bool, type(None)), False):
            raise config.error("finetuning_scaling_factor=true is not supported; fold it into W_dec with SAELens < 6")
    metadata = config.take("metadata", dict, {})
    config.take("device", (str, type(None)), None)
    metadata |= config.finish(_TRAINING, lenient=old)
    metadata |= {"format": "saelens", "saelens_architecture": name, "dtype": dtype.removeprefix("torch.")}
    if k != average:
        metadata["average_k"] = average  # not an integer; at inference the threshold is what counts

    tensors = Tensors(folder / WEIGHTS, read_safetensors(folder / WEIGHTS))
    arrays = {
        "encoder": transposed(tensors.take("W_enc", (p, n), dtype)),
        "decoder": tensors.take("W_dec", (n, p_out), dtype),
        "decoder_bias": tensors.take("b_dec", (p_out,), dtype),
    }
    if architecture == "gated":
        for ours, theirs in (("gate_bias", "b_gate"), ("magnitude_bias", "b_mag"), ("magnitude_log_scale", "r_mag")):
            arrays[ours] = tensors.take(theirs, (n,), dtype)
    else:
        arrays["encoder_bias"] = tensors.take("b_enc", (n,), dtype)
    if architecture == "jumprelu":
        if "log_threshold" in tensors:  # training checkpoints of early versions
            arrays["threshold"] = np.exp(tensors.take("log_threshold", (n,), dtype))
        else:
            arrays["threshold"] = not_negative(tensors.take("threshold", (n,), dtype))
    if architecture in ("batch_topk", "matryoshka"):
        threshold = tensors.take("topk_threshold", ()).astype(arrays["encoder"].dtype)
        if threshold > 0:
            arrays["threshold"] = threshold.reshape(1)
    if skip:
        arrays["skip"] = tensors.take("W_skip", (p_out, p), dtype)
    if old and "scaling_factor" in tensors and not np.allclose(tensors.take("scaling_factor", (n,)), 1):
        raise config.error(f"{WEIGHTS} has a scaling_factor other than 1; fold it into W_dec with SAELens < 6")
    tensors.finish(f"SAELens' {name}")

    checkpoint = SparseCheckpoint(
        architecture,
        arrays,
        k=k,
        group_sizes=sizes,
        pre_bias=pre_bias,
        normalization="layer" if normalize == "layer_norm" else None,
        rescale_by_decoder_norm=rescale,
        transcoder=transcoder,
        sparsity=_sparsity(folder / SPARSITY, n),
        metadata=metadata,
    )
    if normalize == "expected_average_only_in":
        checkpoint = _with_scale(checkpoint, folder)
    return fold_decoder_norm(checkpoint)


def _topk_settings(config: Config, architecture: str, n: int) -> tuple[float | None, tuple[int, ...] | None, bool]:
    """k, group sizes and whether codes are rescaled by the decoder's norms."""
    if architecture not in _TOPK:
        return None, None, False
    rescale = config.take("rescale_acts_by_decoder_norm", bool, False)
    if architecture in ("topk", "abs_topk"):
        return config.size("k"), None, rescale
    average = config.take("k", (int, float))
    if not (1 <= average <= n):
        raise config.error(f"k={average} must be from 1 to the {n} latents")
    sizes = None
    if architecture == "matryoshka":
        ends = config.take("matryoshka_widths", list)
        if any(type(end) is not int for end in ends):
            raise config.error(f"matryoshka_widths={ends} must be integers")
        ends = ends if ends[-1:] == [n] else [*ends, n]
        sizes = tuple(int(size) for size in np.diff([0, *ends]))
    return average, sizes, rescale


def _sparsity(path: Path, n: int) -> np.ndarray | None:
    if not path.is_file():
        return None
    tensors = Tensors(path, read_safetensors(path))
    values = tensors.take("sparsity", (n,), finite=False)
    tensors.finish("SAELens' sparsity")
    return values


def _with_scale(checkpoint: SparseCheckpoint, folder: Path) -> SparseCheckpoint:
    """The factor of training folded in, where the folder has it."""
    if not (folder / SCALER).is_file():
        warnings.warn(
            f"{str(folder)!r} was trained on inputs scaled to an average norm of √d_in, but {SCALER!r} with the factor "
            "is missing; multiply x by √d_in / mean‖x‖ unless the weights have it folded in",
            UserWarning,
            stacklevel=4,
        )
        return checkpoint
    config = Config(folder / SCALER, read_json(folder / SCALER))
    factor = config.take("scaling_factor", (int, float, type(None)))
    if config.take("has_whitening", bool, False):
        raise config.error("whitened inputs are not supported; fold the whitening with SAELens first")
    config.finish()
    if factor is None:
        return checkpoint
    if not (np.isfinite(factor) and factor > 0):
        raise config.error(f"scaling_factor={factor} must be positive")
    return fold_scale(checkpoint.replace({}, normalization="scale", input_scale=float(factor)))


def write(path: Any, checkpoint: SparseCheckpoint) -> None:
    """A folder that SAELens 6 loads with ``SAE.load_from_disk`` and that gives the same codes.

    batch_topk and matryoshka become ``jumprelu`` at their threshold, as the package exports them itself; "scale" and,
    except for top-k, ``rescale_by_decoder_norm`` are folded into the weights.
    """
    c = fold_scale(checkpoint)
    if c.architecture in ("batch_topk", "matryoshka"):
        if "threshold" not in c.arrays:
            raise ValueError(
                f"SAELens keeps a {c.architecture} code as jumprelu, which needs a threshold; calibrate one first, or "
                "save fastae's own file, which needs none"
            )
        c = fold_decoder_norm(c).replace({}, architecture="jumprelu", k=None, group_sizes=None)
    kinds = {key: name for name, key in NAMES.items()}
    name = kinds.get((c.architecture, c.transcoder, "skip" in c.arrays))
    if name is None:
        kind = f"a {c.architecture} {'transcoder' if c.transcoder else 'autoencoder'}" + " with skip" * (
            "skip" in c.arrays
        )
        other = "format='sparsify' can" if c.architecture == "topk" else "fastae's own file can"
        raise ValueError(f"SAELens has no {kind[2:]}; {other}")
    n, p = c.arrays["encoder"].shape
    dtype = c.arrays["encoder"].dtype
    tensors = {
        "W_enc": transposed(c.arrays["encoder"]),
        "W_dec": c.arrays["decoder"],
        "b_dec": c.arrays["decoder_bias"],
    }
    names = {
        "encoder_bias": "b_enc",
        "gate_bias": "b_gate",
        "magnitude_bias": "b_mag",
        "magnitude_log_scale": "r_mag",
        "skip": "W_skip",
    }
    tensors |= {theirs: c.arrays[ours] for ours, theirs in names.items() if ours in c.arrays}
    if c.architecture == "jumprelu":
        tensors["threshold"] = np.broadcast_to(c.arrays["threshold"], (n,))
    config: dict[str, Any] = {
        "d_in": p,
        "d_sae": n,
        "dtype": dtype.name,
        "device": "cpu",
        "apply_b_dec_to_input": c.pre_bias,
        "normalize_activations": "layer_norm" if c.normalization == "layer" else "none",
        "reshape_activations": "none",
        "architecture": name,
        "metadata": _metadata(c.metadata),
    }
    if c.architecture in ("topk", "abs_topk"):
        config |= {"k": c.k, "rescale_acts_by_decoder_norm": c.rescale_by_decoder_norm}
    if c.transcoder:
        config["d_out"] = c.arrays["decoder"].shape[1]
    folder = folder_for(path)
    (folder / SCALER).unlink(missing_ok=True)
    (folder / SPARSITY).unlink(missing_ok=True)  # another model's
    write_safetensors(folder / WEIGHTS, {key: np.asarray(value, dtype) for key, value in tensors.items()})
    if c.sparsity is not None:
        write_safetensors(folder / SPARSITY, {"sparsity": np.asarray(c.sparsity, np.float32)})
    write_json(folder / CONFIG, config)


def _metadata(metadata: dict) -> dict:
    """What came with the checkpoint, under a version that says how the config is to be read."""
    ours = ("format", "saelens_architecture", "dtype")
    kept = {key: value for key, value in metadata.items() if key not in ours}
    version = str(kept.get("sae_lens_version") or "")
    if not re.match(r"\d+", version) or int(re.match(r"\d+", version)[0]) < 6:  # type: ignore[index]
        kept["sae_lens_version"] = "6.0.0"
    kept.setdefault("sae_lens_training_version", None)
    return kept
