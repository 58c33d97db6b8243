"""scikit-learn's own checks of an estimator, whole, and those it leaves to the caller."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks as checks
from sklearn.utils.estimator_checks import parametrize_with_checks

import fastae

# no noise in pretraining: it is drawn per row, so that a row of weight 2 is not the same as that row twice
PLAIN = fastae.DenoisingPretraining(noise=None, max_iter=2)
ESTIMATORS = [
    fastae.Autoencoder(2, max_iter=3, random_state=0),
    fastae.Autoencoder(2, max_iter=3, random_state=0, missing=np.nan),
    fastae.StackedAutoencoder(2, hidden_layer_sizes=(3,), pretraining=PLAIN, max_iter=2, random_state=0),
    fastae.SparseAutoencoder(4, k=1, max_iter=2, random_state=0),
    fastae.SparseAutoencoder(4, k=1, sparsity="batch_topk", max_iter=2, random_state=0),
    fastae.SparseAutoencoder(4, k=1, sparsity="jumprelu", max_iter=2, random_state=0),
    fastae.AutoencoderDetector(random_state=0),
    fastae.AutoencoderDetector(scoring="standardized", scaling="maxabs", max_iter=3, random_state=0),
    fastae.AutoencoderClassifier((8,), pretraining=PLAIN, max_iter=30, learning_rate=0.02, random_state=0),
]


@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


BY_HAND = [
    "check_set_output_transform",
    "check_set_output_transform_pandas",
    "check_set_output_transform_polars",
    "check_global_output_transform_pandas",
    "check_global_set_output_transform_polars",
    "check_transformer_get_feature_names_out",
    "check_transformer_get_feature_names_out_pandas",
    "check_dataframe_column_names_consistency",
]


# the checks fit on a frame and transform an array on purpose
@pytest.mark.filterwarnings("ignore:X (does not have valid|has) feature names")
@pytest.mark.parametrize("estimator", [
    fastae.Autoencoder(2, max_iter=2, random_state=0),
    fastae.AutoencoderClassifier((3,), pretraining=PLAIN, max_iter=2, random_state=0),
], ids=lambda estimator: type(estimator).__name__)  # fmt: skip
@pytest.mark.parametrize("name", BY_HAND)
def test_checks_called_by_hand(name, estimator):
    check = getattr(checks, name)
    if "polars" in name:
        pytest.importorskip("polars")
    if "pandas" in name or "dataframe" in name:
        pytest.importorskip("pandas")
    check(type(estimator).__name__, estimator)


def test_pipeline_and_grid_search():
    from sklearn.model_selection import GridSearchCV

    X = np.random.default_rng(0).normal(size=(60, 6))
    pipeline = make_pipeline(StandardScaler(), fastae.Autoencoder(2, max_iter=3, random_state=0))
    assert pipeline.fit_transform(X).shape == (60, 2)
    search = GridSearchCV(fastae.Autoencoder(2, max_iter=2, random_state=0), {"n_components": [1, 3]}, cv=2).fit(X)
    assert search.best_params_["n_components"] in (1, 3)


def test_clone_keeps_options():
    model = fastae.Autoencoder(2, solver=fastae.Adam(beta1=0.8), penalties=(fastae.L1(1e-3),))
    copy = clone(model)
    assert copy.get_params() == model.get_params()
