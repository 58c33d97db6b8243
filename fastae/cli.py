"""The ``fastae`` command: demo, train, encode, info, bench."""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BLOCK = 65_536  # rows that encode holds at a time


def _load_array(path: str) -> Any:
    import numpy as np

    if not Path(path).is_file():
        raise SystemExit(f"fastae: no file {path!r}; give a .npy file of shape (rows, features)")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise SystemExit(f"fastae: {path!r} is not a .npy file ({error}); write it with numpy.save") from None
    if getattr(array, "ndim", 0) != 2:
        raise SystemExit(f"fastae: {path!r} has {getattr(array, 'ndim', 0)} dimensions; wanted (rows, features)")
    return array


def _demo(options: argparse.Namespace) -> int:
    from .demo import run_demo

    return run_demo(check=options.check, picture=None if options.no_plot else options.picture)


def _info(options: argparse.Namespace) -> int:
    if options.model is None:
        from .config import show_config

        show_config()
        return 0
    from .io.model_file import load

    model = load(options.model)
    print(model)
    print(f"{model.n_features_in_} features, code of {model.network_.n_components}, {model.n_parameters_:,} parameters")
    print(f"{model.t_} steps done, last loss {model.loss_:.6g}")
    return 0


def _parameters(settings: Sequence[str]) -> dict[str, Any]:
    """``name=value`` pairs; values are Python literals, or else strings."""
    parameters = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise SystemExit(f"fastae: --set {setting!r} must be name=value, such as --set dropout=0.1")
        try:
            parameters[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parameters[name] = text
    return parameters


def _train(options: argparse.Namespace) -> int:
    from .models.autoencoder import Autoencoder

    parameters = {
        "hidden_layer_sizes": tuple(options.hidden), "max_iter": options.epochs, "loss": options.loss,
        "learning_rate": options.learning_rate, "random_state": options.seed, "n_jobs": options.n_jobs,
        "verbose": int(not options.quiet),
    } | _parameters(options.set)  # fmt: skip
    try:
        model = Autoencoder(options.n_components, **parameters)
    except TypeError as error:
        raise SystemExit(f"fastae: {error}") from None
    X = _load_array(options.data)
    model.fit(X)
    model.save(options.model)
    print(f"{model.n_iter_} epochs, loss {model.loss_:.6g}, backend {model.backend_}; saved to {options.model}")
    return 0


def _encode(options: argparse.Namespace) -> int:
    import numpy as np

    from .io.model_file import load, write_atomically

    model = load(options.model)
    model.set_params(n_jobs=options.n_jobs)
    X = _load_array(options.data)
    width = model.network_.n_components
    dtype = np.dtype(np.float64 if X.dtype == np.float64 else np.float32)

    def write(file: Any) -> None:
        header = {"descr": dtype.str, "fortran_order": False, "shape": (len(X), width)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(X), BLOCK):
            file.write(model.transform(X[start : start + BLOCK]).tobytes())

    write_atomically(options.out, write)
    print(f"{len(X):,} rows encoded to {options.out}: {(len(X), width)} {dtype}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    from .bench import run_bench, show

    report = run_bench(n_jobs=options.n_jobs)
    print(json.dumps(report, indent=1) if options.json else show(report))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    from . import __version__

    top = argparse.ArgumentParser(prog="fastae", description="Fast autoencoders on compiled kernels.")
    top.add_argument("--version", action="version", version=f"fastae {__version__}")
    commands = top.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", help="train on scikit-learn's digits and print figures")
    demo.add_argument("--check", action="store_true", help="exit with 1 if Numba ran although a C++ compiler exists")
    demo.add_argument("--no-plot", action="store_true", help="write no picture")
    demo.add_argument("--picture", default="fastae-demo.png", help="where the picture goes (default: %(default)s)")
    demo.set_defaults(run=_demo)

    train = commands.add_parser("train", help="train an autoencoder on a .npy file")
    train.add_argument("data", help=".npy file, (rows, features)")
    train.add_argument("model", help="model file to write (.safetensors)")
    train.add_argument("--n-components", type=int, default=32, help="width of the code (default: %(default)s)")
    train.add_argument("--hidden", type=int, nargs="*", default=[], help="widths of the encoder's hidden layers")
    train.add_argument("--epochs", type=int, default=100)
    train.add_argument("--loss", default="squared_error")
    train.add_argument("--learning-rate", type=float, default=1e-3)
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any other parameter")
    train.add_argument("--quiet", action="store_true", help="no progress bar")
    train.set_defaults(run=_train)

    encode = commands.add_parser("encode", help="encode a .npy file, block by block")
    encode.add_argument("model", help="model file")
    encode.add_argument("data", help=".npy file, (rows, features)")
    encode.add_argument("out", help=".npy file to write, (rows, code)")
    encode.set_defaults(run=_encode)

    info = commands.add_parser("info", help="what fastae found on this machine, or what a model file holds")
    info.add_argument("model", nargs="?", help="model file")
    info.set_defaults(run=_info)

    bench = commands.add_parser("bench", help="quick self-check of speed")
    bench.add_argument("--json", action="store_true", help="machine-readable; the schema stands in fastae/bench.py")
    bench.set_defaults(run=_bench)
    for command in (train, encode, bench):
        command.add_argument("--n-jobs", type=int, default=None, help="threads (default: all cores)")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; errors of input end with a message and status 2."""
    options = parser().parse_args(argv)
    try:
        return options.run(options)
    except (ValueError, TypeError, OSError, ArithmeticError, ImportError) as error:
        print(f"fastae: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastae: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
