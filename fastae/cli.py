"""The ``fastae`` command: demo, train, encode, info, bench."""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BLOCK = 16_384  # rows that encode holds at a time


def _load_array(path: str) -> Any:
    import numpy as np

    if not Path(path).is_file():
        raise SystemExit(f"fastae: no file {path!r}; give a .npy file of shape (rows, features)")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise SystemExit(f"fastae: {path!r} is not a .npy file ({error}); write it with numpy.save") from None
    if not isinstance(array, np.ndarray):
        raise SystemExit(f"fastae: {path!r} is an archive of several arrays; write one array with numpy.save")
    if array.ndim != 2:
        raise SystemExit(f"fastae: {path!r} has {array.ndim} dimensions; wanted (rows, features)")
    return array


def _check_result(path: str, *read: str) -> None:
    """Ends the command, before any work, where a result cannot be written or would replace a file that is read."""
    result = Path(path)
    if not result.resolve().parent.is_dir():
        raise SystemExit(f"fastae: cannot write {path!r}: there is no folder {str(result.parent)!r}; make it first")
    if not os.access(result.resolve().parent, os.W_OK):
        raise SystemExit(f"fastae: cannot write {path!r}: no permission to write into {str(result.parent)!r}; give "
                         "another folder")  # fmt: skip
    if any(result.resolve() == Path(name).resolve() for name in read):
        raise SystemExit(f"fastae: {path!r} is read, and would be replaced by the result; write to another path")


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
    inner = getattr(model, "autoencoder_", model)  # a detector's
    print(model)
    print(f"{model.n_features_in_} features, code of {inner.network_.n_components}, {inner.n_parameters_:,} parameters")
    print(", ".join([f"{inner.t_} steps done", *_losses(inner)]))
    return 0


def _losses(model: Any) -> list[str]:
    """What is said of the last epoch of a fitted model, if there was one."""
    if not model.loss_curve_:
        return []
    said = [f"last loss {model.loss_curve_[-1]:.6g}"]
    if hasattr(model, "l0_curve_"):
        said.append(f"{model.l0_curve_[-1]:.4g} latents a row, FVU {model.fvu_curve_[-1]:.4f}, "
                    f"{100 * model.dead_curve_[-1]:.3g} % dead")  # fmt: skip
    return said


def _parameters(settings: Sequence[str]) -> dict[str, Any]:
    """``name=value`` pairs; values are Python literals, numbers such as nan, or else strings."""
    parameters: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise SystemExit(f"fastae: --set {setting!r} must be name=value, such as --set dropout=0.1")
        parameters[name] = text
        for read in (float, ast.literal_eval):  # the latter wins: it tells 1 from 1.0
            with contextlib.suppress(ValueError, SyntaxError):
                parameters[name] = read(text)
    return parameters


def _train(options: argparse.Namespace) -> int:
    from .models.autoencoder import Autoencoder
    from .models.sparse import SparseAutoencoder

    _check_result(options.model, *options.data)
    if Path(options.model).is_dir():
        raise SystemExit(f"fastae: {options.model!r} is a folder; name a file, such as model.safetensors")
    if options.sparse and options.hidden:
        raise SystemExit("fastae: --hidden goes with dense models; leave it out with --sparse")
    if not options.sparse and (options.resume or options.checkpoint_every):
        raise SystemExit("fastae: --resume and --checkpoint-every go with --sparse; leave them out for dense models")
    given = {
        "n_components": options.n_components, "hidden_layer_sizes": tuple(options.hidden) or None,
        "max_iter": options.epochs, "loss": options.loss, "learning_rate": options.learning_rate,
        "random_state": options.seed, "n_jobs": options.n_jobs, "verbose": int(not options.quiet),
    }  # fmt: skip
    parameters = {name: value for name, value in given.items() if value is not None} | _parameters(options.set)
    model: Any
    try:
        model = (SparseAutoencoder if options.sparse else Autoencoder)(**parameters)
    except TypeError as error:
        raise SystemExit(f"fastae: {error}") from None
    X = _load_array(options.data[0]) if len(options.data) == 1 else options.data
    if options.resume or options.checkpoint_every:
        every = {"checkpoint_every": options.checkpoint_every} if options.checkpoint_every else {}
        model.fit(X, checkpoint=options.model, resume=options.resume, **every)
    else:
        model.fit(X)
        model.save(options.model)
    said = ", ".join([f"{model.n_iter_} epochs", *_losses(model), f"backend {model.backend_}"])
    print(f"{said}; saved to {options.model}")
    return 0


class _Progress:
    """A line that says how far encoding is: on a terminal while it runs, else once at the end."""

    def __init__(self, quiet: bool):
        self.live = not quiet and sys.stderr.isatty()
        self.begin = self.shown = time.perf_counter()
        self.first: int | None = None  # rows that an earlier call had done are not this one's speed
        self.rate = 0.0

    def __call__(self, done: int, total: int | None) -> None:
        now = time.perf_counter()
        if self.first is None:  # the first block warms up
            self.first, self.begin = done, now
            return
        self.rate = (done - self.first) / max(now - self.begin, 1e-9)
        if self.live and now - self.shown > 0.2:
            self.shown = now
            left = f" of {total:,}, {(total - done) / self.rate:.0f} s left" if total is not None else ""
            sys.stderr.write(f"\r{done:,} rows{left}, {self.rate:,.0f} rows/s\x1b[K")

    def close(self) -> str:
        """Ends the line; says the speed."""
        if self.live:
            sys.stderr.write("\r\x1b[K")
        return f", {self.rate:,.0f} rows/s" if self.rate else ""


def _encode(options: argparse.Namespace) -> int:
    from .encode import encode_to
    from .io.model_file import load
    from .models.feed import without_names
    from .stream import open_rows
    from .validation import computing_dtype

    _check_result(options.out, options.model, *options.data)
    model = without_names(load(options.model))  # files have no names of columns
    model.set_params(n_jobs=options.n_jobs)
    sparse = hasattr(model, "encode_to")
    if not (sparse or hasattr(model, "transform")):
        raise SystemExit(f"fastae: {type(model).__name__} gives no codes; encode goes with models that transform rows")
    if options.k is not None and not sparse:
        raise SystemExit(f"fastae: --k goes with models whose encode takes k; {type(model).__name__} does not")
    rows = open_rows(options.data, model.n_features_in_)
    dtype = options.dtype or computing_dtype(rows.dtype, getattr(model, "precision", "auto")).name
    progress = _Progress(options.quiet)
    if options.out.endswith(".npy"):
        if sparse:
            raise SystemExit(f"fastae: {options.out!r} would be one file, sparse codes are several; give a folder")
        shape = _encode_file(model, rows, options, dtype, progress)
        print(f"{shape[0]:,} rows encoded to {options.out}: {shape} {dtype}{progress.close()}")
        return 0
    how = {"block_rows": options.block_rows, "resume": options.resume, "dtype": dtype, "progress": progress}
    if sparse:
        manifest = model.encode_to(options.out, rows, k=options.k, **how)
    else:
        manifest = encode_to(model.transform, options.out, rows, **how)
    width = (
        f"{manifest['k']} of {manifest['n_components']}" if manifest["kind"] == "fixed" else manifest["n_components"]
    )
    speed = progress.close()
    print(f"{manifest['rows']:,} rows encoded to {options.out}: {manifest['kind']}, {width} {dtype}{speed}")
    return 0


def _encode_file(model: Any, rows: Any, options: argparse.Namespace, dtype: str, progress: Any) -> tuple[int, int]:
    """Dense codes as one .npy file; returns its shape."""
    import numpy as np

    from .io.model_file import write_atomically

    shape = (rows.n_rows, model.transform(next(rows.blocks(1))).shape[1])

    def write(file: Any) -> None:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        done = 0
        for block in rows.blocks(options.block_rows):
            file.write(model.transform(block).astype(dtype, copy=False).tobytes())
            done += len(block)
            progress(done, rows.n_rows)

    write_atomically(options.out, write)
    return shape


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

    train = commands.add_parser("train", help="train an Autoencoder, or a SparseAutoencoder, on .npy files")
    train.add_argument("data", nargs="+", help=".npy file, (rows, features); or several that follow each other")
    train.add_argument("model", help="model file to write (.safetensors)")
    train.add_argument("--sparse", action="store_true", help="a SparseAutoencoder")
    train.add_argument("--n-components", type=int, help="width of the code, number of latents")
    train.add_argument("--hidden", type=int, nargs="*", default=[], help="widths of the encoder's hidden layers")
    train.add_argument("--epochs", type=int)
    train.add_argument("--loss")
    train.add_argument("--learning-rate", type=float)
    train.add_argument("--seed", type=int, default=0)
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other parameter, such as k=64 with --sparse; what is not said is the class's default",
    )
    train.add_argument("--checkpoint-every", type=int, metavar="STEPS", help="write the model so often (--sparse)")
    train.add_argument("--resume", action="store_true", help="go on from the model file where it is there (--sparse)")
    train.add_argument("--quiet", action="store_true", help="no progress bar")
    train.set_defaults(run=_train)

    encode = commands.add_parser("encode", help="encode .npy files, block by block; goes on where it was interrupted")
    encode.add_argument("model", help="model file")
    encode.add_argument("data", nargs="+", help=".npy file, (rows, features); or several that follow each other")
    encode.add_argument("out", help="folder to write to; for dense codes also a .npy file")
    encode.add_argument("--block-rows", type=int, default=BLOCK, help="rows encoded at a time (default: %(default)s)")
    encode.add_argument("--k", type=int, help="entries a row, for models whose encode takes k")
    encode.add_argument("--dtype", choices=("float16", "float32", "float64"), help="of the values")
    encode.add_argument("--no-resume", dest="resume", action="store_false", help="start anew")
    encode.add_argument("--quiet", action="store_true", help="no progress line")
    encode.set_defaults(run=_encode)

    info = commands.add_parser("info", help="what fastae found on this machine, or what a model file holds")
    info.add_argument("model", nargs="?", help="model file")
    info.set_defaults(run=_info)

    bench = commands.add_parser("bench", help="quick self-check of speed")
    bench.add_argument("--json", action="store_true", help="machine-readable; the schema stands in fastae/bench.py")
    bench.set_defaults(run=_bench)
    for command in (train, encode, bench):
        command.add_argument("--n-jobs", "--threads", type=int, default=None, help="threads (default: all cores)")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; errors of input end with a message and status 2."""
    options = parser().parse_args(argv)
    try:
        return options.run(options)
    except (ValueError, TypeError, OSError, ArithmeticError, ImportError) as error:
        print(f"fastae: {error}".replace("resume=False", "--no-resume"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastae: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
