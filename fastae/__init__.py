"""fastae: fast, exact, reproducible autoencoders on compiled kernels.

Public names are loaded when first used: ``import fastae`` itself costs little more than numpy.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# where each public name lives
_HOMES = {
    "models.autoencoder": ("Autoencoder",),
    "models.sparse": ("SparseAutoencoder",),
    "tasks.detector": ("AutoencoderDetector",),
    "models.stacked": ("StackedAutoencoder",),
    "tasks.classifier": ("AutoencoderClassifier",),
    "spec.pretraining": ("DenoisingPretraining",),
    "io.model_file": ("load",),
    "registry": ("register_activation", "register_loss", "register_penalty"),
    "config": ("show_config",),
    "training": ("EpochInfo",),
    "exceptions": (
        "ModelFileError", "NonFiniteLossError",
        "ModelWarning", "OutputRangeWarning", "DeadUnitsWarning", "SaturationWarning", "WorseThanPCAWarning",
    ),
    "diagnostics.report": ("Diagnosis", "Finding", "LayerReport"),
    "diagnostics.pca": ("PCAComparison",),
    "encode": ("encode_to", "open_codes"),
    "plot": (
        "LossCurveDisplay", "ReconstructionDisplay", "CodeScatterDisplay", "FilterDisplay", "ErrorHistogramDisplay",
        "FiringDensityDisplay", "FrontierDisplay",
    ),
    "spec.options": (
        "Identity", "Sigmoid", "Tanh", "ReLU", "LeakyReLU", "ELU", "SELU", "Exponential", "Softplus", "GELU",
        "GELUTanh", "SiLU", "HardSigmoid", "Softmax", "Maxout", "BatchNorm", "LayerNorm",
        "SquaredError", "BinaryCrossEntropy", "Huber", "Absolute", "Poisson", "Multinomial", "CategoricalCrossEntropy",
        "CosineLoss", "NegativeBinomial", "ZeroInflatedNegativeBinomial",
        "L1", "L2", "ElasticNet", "KLSparsity", "Activity", "ActivityL1", "Contractive", "Laplacian", "SVDProjector",
        "Orthogonality", "Decorrelation", "OnLayers",
        "MaxNorm", "WeightRange", "NonNegative",
        "MaskingNoise", "GaussianNoise", "SaltAndPepperNoise", "SwapNoise",
        "SGD", "Momentum", "Nesterov", "AdaGrad", "RMSprop", "Adam", "AMSGrad", "AdamW", "Lion",
        "LBFGS", "ConjugateGradient",
    ),
    "spec.heads": ("Head", "Heads"),
    "spec.sparse": (
        "TopK", "AbsTopK", "BatchTopK", "Matryoshka", "ReLUCode", "JumpReLU", "Gated", "AuxK", "MultiTopK", "Resample",
    ),
    "schedules": (
        "ConstantRate", "StepDecay", "ExponentialDecay", "Cosine", "LinearWarmup", "OneCycle", "ReduceOnPlateau",
    ),
    "initializers": (
        "Constant", "Zeros", "Ones", "Uniform", "Normal", "TruncatedNormal", "XavierUniform", "XavierNormal",
        "HeUniform", "HeNormal", "LeCunUniform", "LeCunNormal", "Orthogonal", "PCAInit",
    ),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = ("distributed", "metrics", "ops", "plot", "stream")

__all__ = ["__version__", *_MODULES, *_HOME_OF]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
