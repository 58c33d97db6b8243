"""Options, networks, schedules and plans: what they accept, what they mean, and how plans are laid out."""

import dataclasses
import json
import pickle

import numpy as np
import pytest

import fastae
from fastae.initializers import INITIALIZERS
from fastae.io.model_file import decode, encode
from fastae.plan import schema
from fastae.plan.build import evaluation_plan, inference_plan, training_plan
from fastae.spec import options
from fastae.spec.network import Placed, dense_network

TABLES = {
    "activation": options.OUTPUT_ACTIVATIONS,
    "loss": options.ALL_LOSSES,
    "penalties": options.ALL_PENALTIES,
    "solver": options.ALL_SOLVERS,
    "noise": options.NOISES,
    "constraints": options.CONSTRAINTS,
    "initializer": INITIALIZERS,
}
OPTIONS = sorted({cls for table in TABLES.values() for cls in table.values()}, key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", OPTIONS, ids=lambda cls: cls.__name__)
def test_every_option_is_public_frozen_and_comes_back(cls):
    option = cls()
    assert getattr(fastae, cls.__name__) is cls
    assert pickle.loads(pickle.dumps(option)) == option
    assert decode(json.loads(json.dumps(encode(option)))) == option
    assert eval(repr(option), vars(options) | {cls.__name__: cls}) == option
    assert hash(option) == hash(cls())
    for field in dataclasses.fields(cls):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(option, field.name, 0)


def _limits():
    for cls in OPTIONS:
        for name, (low, high, closed) in cls._intervals.items():
            if np.isfinite(low):
                yield cls, name, low - 1 if closed in ("both", "left") else low
            if np.isfinite(high):
                yield cls, name, high + 1 if closed in ("both", "right") else high
            yield cls, name, float("nan")
            yield cls, name, "much"


@pytest.mark.parametrize("cls, name, value", list(_limits()))
def test_every_interval_is_checked(cls, name, value):
    with pytest.raises((ValueError, TypeError), match=f"{cls.__name__}.{name}={value!r} must be"):
        cls(**{name: value})


@pytest.mark.parametrize("cls, fields", [
    (fastae.LBFGS, {"history": 3.0, "max_evaluations": np.int32(3)}), (fastae.Maxout, {"pieces": np.float32(3)}),
    (fastae.SVDProjector, {"n_components": 3.0}), (fastae.ReduceOnPlateau, {"patience": 3.0}),
    (fastae.TopK, {"k": 3.0}), (fastae.BatchTopK, {"k": 3.0, "k_start": 3.0}), (fastae.AuxK, {"k": 3.0}),
    (fastae.MultiTopK, {"factor": 3.0}), (fastae.Resample, {"every": 3.0}),
])  # fmt: skip
def test_whole_numbers_of_any_type_are_kept_as_int(cls, fields):
    assert repr(cls(**fields)) == repr(cls(**dict.fromkeys(fields, 3)))
    for name in fields:
        for value in (2.5, "3", *[None] * (getattr(cls, name) is not None)):
            with pytest.raises(TypeError, match=f"{cls.__name__}.{name}={value!r} must be an integer"):
                cls(**{name: value})


@pytest.mark.parametrize("what", TABLES)
def test_names_stand_for_options_and_unknown_ones_get_advice(what):
    table = TABLES[what]
    for name, cls in table.items():
        assert options.choose(what, name, table) == cls()
        with pytest.raises(ValueError, match=f"{what}='{name}x' is unknown; did you mean '{name}'.* choose from"):
            options.choose(what, name + "x", table)
    with pytest.raises(TypeError, match="must be a name or one of"):
        options.choose(what, 3, table)


def test_the_decoder_mirrors_the_encoder_and_dropout_stays_off_code_and_output():
    network = dense_network(30, n_components=5, hidden_layer_sizes=(20, 10), dropout=0.25)
    assert [(layer.n_in, layer.n_out) for layer in network.layers] == [
        (30, 20), (20, 10), (10, 5), (5, 10), (10, 20), (20, 30)]  # fmt: skip
    assert [layer.dropout for layer in network.layers] == [0.25, 0.25, 0, 0.25, 0.25, 0]
    assert [layer.activation.name for layer in network.layers] == ["relu", "relu", "identity", "relu", "relu",
                                                                   "identity"]  # fmt: skip
    own = dense_network(30, n_components=5, hidden_layer_sizes=20, decoder_layer_sizes=(), dropout=[0.5])
    assert [layer.n_out for layer in own.layers] == [20, 5, 30] and own.layers[0].dropout == 0.5
    assert dense_network(30, n_components=5).encoder[0].activation.name == "relu"  # one linear layer would be PCA


@pytest.mark.parametrize("name", options.ACTIVATIONS)
def test_kl_sparsity_wants_a_code_between_0_and_1(name):
    row = options.ACTIVATIONS[name]._row
    make = {"n_components": 2, "code_activation": name, "penalties": "kl_sparsity"}
    if row.low >= 0 and row.high <= 1:
        assert dense_network(3, **make).penalties == (Placed(fastae.KLSparsity(), (0,)),)
    else:
        with pytest.raises(ValueError, match="KLSparsity needs activities"):
            dense_network(3, **make)


@pytest.mark.parametrize("loss", options.ALL_LOSSES)
def test_losses_take_their_own_output_or_identity(loss):
    owned = options.ALL_LOSSES[loss]().output
    refusal = "leave it at 'identity'" if owned == "distribution" else f"goes with output_activation='{owned}'"
    for output in options.OUTPUT_ACTIVATIONS:
        if owned == "identity" or output in ("identity", owned):
            assert dense_network(3, n_components=2, loss=loss, output_activation=output).owned_output == owned
        else:
            with pytest.raises(ValueError, match=refusal):
                dense_network(3, n_components=2, loss=loss, output_activation=output)


@pytest.mark.parametrize("parameters, message", [
    ({"penalties": 3}, "penalties=3 must be one option or a sequence"),
    ({"constraints": 1.0}, "constraints=1.0 must be"),
    ({"penalties": iter(["l1"])}, "penalties=<list_iterator.* must be one option or a sequence"),
    ({"hidden_layer_sizes": iter([4])}, "hidden_layer_sizes=<list_iterator.* must be a sequence"),
    ({"hidden_layer_sizes": "64"}, "hidden_layer_sizes='64' must be integers"),
    ({"hidden_layer_sizes": 2.5}, "must be a sequence of integers"),
    ({"decoder_layer_sizes": (3, "x")}, r"decoder_layer_sizes\[1\]='x'"),
    ({"dropout": "half"}, "dropout='half' must be a number"),
    ({"dropout": 0.5}, "dropout=0.5 is for hidden layers, and there are none"),
    ({"normalization": "batch"}, "normalization='batch' is for hidden layers"),
    ({"activation": fastae.Softmax()}, "activation=Softmax"),
    ({"constraints": [fastae.WeightRange(-2, -1), "non_negative"]}, "no weight of layer 0 satisfies them all"),
    ({"constraints": [fastae.MaxNorm(1), fastae.OnLayers(fastae.WeightRange(0.5, 1), -1)]}, "MaxNorm draws .* layer 1"),
])  # fmt: skip
def test_networks_refuse(parameters, message):
    with pytest.raises((ValueError, TypeError), match=message):
        dense_network(3, **{"n_components": 2} | parameters)
    assert dense_network(3, n_components=2, penalties=None, constraints=None).penalties == ()


@pytest.mark.parametrize("schedule, epochs, rates", [
    (fastae.ConstantRate(0.5), [0, 3], [0.5, 0.5]),
    (fastae.StepDecay(1, 0.1, every=2), [0, 1.9, 2, 4], [1, 1, 0.1, 0.01]),
    (fastae.ExponentialDecay(1, 0.25), [0, 0.5, 1], [1, 0.5, 0.25]),
    (fastae.Cosine(1, floor=0.2), [0, 2, 4], [1, 0.6, 0.2]),
    (fastae.Cosine(1, restart=2), [0, 1, 2, 3], [1, 0.5, 1, 0.5]),
    (fastae.Cosine(1, warmup=2), [1, 2, 3, 4], [0.5, 1, 0.5, 0]),
    (fastae.LinearWarmup(1, warmup=2, floor=0.5), [1, 2, 3, 4, 9], [0.5, 1, 0.75, 0.5, 0.5]),
    (fastae.OneCycle(1, rise=0.25), [0, 1, 4], [0.04, 1, 4e-6]),
    (fastae.ReduceOnPlateau(0.3), [0, 3], [0.3, 0.3]),
])  # fmt: skip
def test_schedules_at_known_points(schedule, epochs, rates):
    np.testing.assert_allclose(schedule.rates(np.array(epochs, float), 4), rates, rtol=1e-8, atol=1e-12)


def test_reduce_on_plateau_waits_for_its_patience():
    schedule = fastae.ReduceOnPlateau(1.0, factor=0.5, patience=1, floor=0.2)
    assert schedule.reduced([3, 2], 1.0) == 1.0
    assert schedule.reduced([3, 2, 2], 1.0) == 1.0
    assert schedule.reduced([3, 2, 2, 2], 1.0) == 0.5
    assert schedule.reduced([3, 2, 2, 2], 0.3) == 0.2
    assert schedule.reduced([3, 2, 2, 2], 0.1) == 0.1


NETWORK = dense_network(
    9, n_components=3, hidden_layer_sizes=(6,), activation="gelu", dropout=0.1, noise="swap", solver="amsgrad",
    penalties=["l1", fastae.ActivityL1(0.1)], constraints="max_norm",
)  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_and_states_mirror_the_parameters(dtype):
    plan = training_plan(NETWORK, dtype, 32)
    buffers = {buffer.name: buffer for buffer in plan.buffers}
    for i in range(len(NETWORK.layers)):
        for name in (f"w{i}", f"b{i}"):
            own, gradient = buffers[name], buffers["d" + name]
            assert (own.space, gradient.space) == (schema.THETA, schema.GRAD)
            assert (own.offset, own.rows, own.columns) == (gradient.offset, gradient.rows, gradient.columns)
            assert own.offset % 64 == 0
    theta, grad, state = plan.sizes[schema.THETA], plan.sizes[schema.GRAD], plan.sizes[schema.STATE]
    assert theta == grad == state / 3 == buffers["theta"].columns * np.dtype(dtype).itemsize


def test_the_training_plan_does_what_it_must_and_no_more():
    plan = training_plan(NETWORK, np.float32, 32)
    kinds = [(op.kind, op.phase) for op in plan.ops]
    first_update = kinds.index(("update", schema.UPDATE))
    assert all(phase == schema.GRADIENT for _, phase in kinds[:first_update])
    assert all(phase == schema.UPDATE for _, phase in kinds[first_update:])
    assert {op.kind for op in plan.ops[first_update:]} == {"update", "project"}
    grads = [op for op in plan.ops if op.kind == "dense_grad"]
    assert "dx" not in grads[-1].slots and all("dx" in op.slots for op in grads[:-1])
    kept = [op.slots.get("z") for op in plan.ops if op.kind == "dense"]
    assert [z is not None for z in kept] == [True, False, True, False]  # gelu's derivative needs z, identity's doesn't
    streams = [op.ints["stream"] for op in plan.ops if op.kind in ("noise", "dense")]
    assert streams == [0, 2, 0, 3, 0]  # swap noise takes two; layers without dropout none
    assert not plan.row_local


@pytest.mark.parametrize("part, layers", [("encode", 2), ("decode", 2), ("reconstruct", 4)])
def test_inference_plans_are_row_local_and_pack_first(part, layers):
    plan = inference_plan(NETWORK, np.float32, part=part)
    assert [op.kind for op in plan.ops] == ["pack"] * layers + ["gather"] + ["dense"] * layers
    assert all(op.phase == schema.PREPARE for op in plan.ops[:layers])
    assert all("z" not in op.slots and op.floats["rate"] == 0 for op in plan.ops if op.kind == "dense")
    assert plan.row_local and plan.n_external == 1
    assert evaluation_plan(NETWORK, np.float32).row_local
