"""Builds ``fastae._core``: one static library per instruction set, linked into one extension.

Environment: ``CC``, ``CXX``, ``CXXFLAGS`` as usual; ``FASTAE_SANITIZE=address`` or ``thread`` for a sanitised build;
``FASTAE_CUDA=1`` compiles the CUDA kernels with nvcc, ``0`` does not; by default (``auto``) wheels have them where
nvcc is at hand, and in-place builds leave it to the first use on a GPU.

An instruction set that does not compile is left out. Without a working compiler the package is installed all the
same and runs on Numba. ``fastae/_build.json`` records what was built, and why something was not.
"""

import hashlib
import json
import os
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_clib import build_clib
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

SOURCES = Path("csrc")
INCLUDES = [str(SOURCES), pybind11.get_include()]
HEADERS = sorted(str(path) for path in SOURCES.glob("*.h"))
FAILURES = (Exception, SystemExit)  # compilers fail as CompileError, LibError, OSError, and distutils may exit

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
X86 = {"baseline": ["-O2"], "avx2": AVX2, "avx512": AVX512}  # -O3 gains 3 % there, for a quarter of its compile time
ARM = {"neon": []}

SANITIZE = os.environ.get("FASTAE_SANITIZE", "")
SANITIZERS = {
    "": ["-g0"],
    "address": [
        "-O1",
        "-g",
        "-fno-omit-frame-pointer",
        "-fsanitize=address,undefined",
        "-fno-sanitize=vptr",  # needs run-time type information, which the kernels do without
        "-fno-sanitize-recover=undefined",
    ],
    "thread": ["-O1", "-g", "-fsanitize=thread"],
}
if SANITIZE not in SANITIZERS:
    sys.exit(f"FASTAE_SANITIZE={SANITIZE!r} must be 'address' or 'thread'; unset it for an ordinary build")

CUDA = os.environ.get("FASTAE_CUDA", "") or "auto"
if CUDA not in ("0", "1", "auto"):
    sys.exit(f"FASTAE_CUDA={CUDA!r} must be '0', '1' or 'auto'; unset it for the default, 'auto'")
CUDA_PACKAGE = Path("fastae", "backends", "cuda")
DEVICE = runpy.run_path(str(CUDA_PACKAGE / "source.py"))

USER_FLAGS = shlex.split(os.environ.get("CXXFLAGS", ""))
COMMON_FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unused-function", "-Wno-psabi"]
# No -ffast-math: NaN, infinities and -0 must come out right, and products are fused only where fma is written.
KERNEL_FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-exceptions", "-fno-rtti"]
FINAL_FLAGS = SANITIZERS[SANITIZE] + USER_FLAGS
MODULE_SOURCES = [str(SOURCES / name) for name in ("bindings.cpp", "encoder_binding.cpp", "threads.cpp", "cpu.cpp")]
MODULE_FLAGS = [*COMMON_FLAGS, "-O2", *FINAL_FLAGS]
LINK_FLAGS = [flag for flag in SANITIZERS[SANITIZE] if flag.startswith("-fsanitize")]
if not SANITIZE and sys.platform.startswith("linux"):
    LINK_FLAGS.append("-s")


def instruction_sets():
    """Sets that this platform can have and whose stub is in csrc: {name: flags}."""
    machine = sysconfig.get_platform().rpartition("-")[2].lower()
    known = X86 if machine in ("x86_64", "amd64") else ARM if machine in ("arm64", "aarch64") else {"baseline": []}
    return {isa: flags for isa, flags in known.items() if (SOURCES / f"isa_{isa}.cpp").exists()}


def library(isa, flags):
    source = str(SOURCES / f"isa_{isa}.cpp")
    return (
        f"fastae_{isa}",
        {
            "sources": [source],
            "cflags": [*COMMON_FLAGS, *KERNEL_FLAGS, *flags, *FINAL_FLAGS],
            "obj_deps": {"": HEADERS},
        },
    )


def macros(isas):
    """What bindings.cpp has to know: the kernel tables it can refer to."""
    return [(f"FASTAE_HAVE_{isa.upper()}", "1") for isa in isas]


def fingerprint(compiler, flags):
    """Digest of compiler, flags and every source: unlike a time stamp, it cannot be fooled by an old build folder."""
    command = getattr(compiler, "compiler_so_cxx", None) or compiler.compiler_so
    digest = hashlib.sha256(repr((command, flags, sys.version)).encode())
    try:
        digest.update(subprocess.run([command[0], "--version"], capture_output=True, check=False).stdout)
    except OSError:
        pass  # the compilation itself will say so
    for path in sorted(SOURCES.glob("*.[ch]*")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def shout(*lines):
    """Print a message that stands out in a build log."""
    print("=" * 100, *lines, "=" * 100, sep="\n", file=sys.stderr, flush=True)


class BuildPackage(build_py):
    """Starts from an empty build folder, so that no module or extension of an earlier build is shipped."""

    def run(self):
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib, "fastae"), ignore_errors=True)
        super().run()
        if not self.editable_mode:
            ship_device_code(Path(self.build_lib) / CUDA_PACKAGE / "csrc")


def ship_device_code(folder):
    """The kernels' sources, from which CUDA compiles them at their first use where no fatbin is."""
    for name in DEVICE["shipped"](SOURCES):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(SOURCES / name, target)


def wants_cuda(inplace):
    """Whether to compile the CUDA kernels now. Half a minute of both of two cores: not for a working copy."""
    return not SANITIZE and (CUDA == "1" or (CUDA == "auto" and not inplace and shutil.which("nvcc") is not None))


class BuildLibraries(build_clib):
    """Builds the instruction sets side by side and keeps those that succeed.

    The module's own sources are compiled beside them, in the hope that all sets succeed.
    """

    def initialize_options(self):
        super().initialize_options()
        self.built = []
        self.failed = {}
        self.module_objects = []
        self.cuda = None

    def build_libraries(self, libraries):
        fatbins = {}
        with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
            attempts = {name: pool.submit(self.build_one, name, info) for name, info in reversed(libraries)}
            module = pool.submit(self.compile_module, [name.removeprefix("fastae_") for name, _ in libraries])
            if wants_cuda(self.get_finalized_command("build_ext").inplace):
                fatbins = {
                    real: pool.submit(DEVICE["compile_fatbin"], SOURCES, real, self.fatbin(real))
                    for real in DEVICE["REALS"]
                }
        for name, attempt in attempts.items():
            isa = name.removeprefix("fastae_")
            try:
                attempt.result()
                self.built.append(isa)
            except FAILURES as error:
                self.failed[isa] = f"{type(error).__name__}: {error}"
                shout(f"fastae: the {isa} kernels could not be built and are left out: {error}")
                if SANITIZE:
                    raise
        self.built.reverse()
        if not self.failed and module.exception() is None:
            self.module_objects = module.result()
        if fatbins:
            self.cuda = {real: self.cuda_outcome(attempt) for real, attempt in fatbins.items()}

    def fatbin(self, real):
        return Path(self.build_temp, "cuda", f"kernels_{real}.fatbin")

    @staticmethod
    def cuda_outcome(attempt):
        """What a fatbin holds; a failure is reported and fails nothing, as there is another way at run time."""
        try:
            return attempt.result()
        except FAILURES as error:
            shout(f"fastae: CUDA kernels could not be compiled ahead; a GPU's first use will: {error}")
            return {"error": f"{type(error).__name__}: {error}"}

    def build_one(self, name, info):
        source, flags = info["sources"], info["cflags"]
        archive = Path(self.compiler.library_filename(name, output_dir=self.build_clib))
        stamp = archive.with_suffix(".stamp")
        wanted = fingerprint(self.compiler, flags)
        if archive.exists() and stamp.exists() and stamp.read_text() == wanted:
            return
        stamp.unlink(missing_ok=True)
        archive.unlink(missing_ok=True)
        objects = self.compiler.compile(source, output_dir=self.build_temp, extra_postargs=flags)
        self.compiler.create_static_lib(objects, name, output_dir=self.build_clib)
        stamp.write_text(wanted)

    def compile_module(self, isas):
        objects = self.compiler.object_filenames(MODULE_SOURCES, output_dir=self.build_temp)
        stamp = Path(self.build_temp, "module.stamp")
        wanted = fingerprint(self.compiler, [isas, MODULE_FLAGS, INCLUDES])
        if stamp.exists() and stamp.read_text() == wanted and all(map(os.path.exists, objects)):
            return objects
        stamp.unlink(missing_ok=True)
        objects = self.compiler.compile(
            MODULE_SOURCES,
            output_dir=self.build_temp,
            macros=macros(isas),
            include_dirs=[*INCLUDES, sysconfig.get_path("include"), sysconfig.get_path("platinclude")],
            extra_postargs=MODULE_FLAGS,
        )
        stamp.write_text(wanted)
        return objects

    def get_library_names(self):
        return [f"fastae_{isa}" for isa in self.built]


class BuildModule(build_ext):
    """Links the libraries that exist, tells the module which, and records the outcome."""

    def run(self):
        self.run_command("build_clib")
        libraries = self.get_finalized_command("build_clib")
        self.report = {"instruction_sets": libraries.built, "failed": dict(libraries.failed), "error": None}
        super().run()
        self.copy_fatbins(libraries)
        self.write_report()

    def copy_fatbins(self, libraries):
        folder = CUDA_PACKAGE if self.inplace else Path(self.build_lib) / CUDA_PACKAGE
        self.report["cuda"] = libraries.cuda
        for real, outcome in (libraries.cuda or {}).items():
            if "error" not in outcome:
                folder.mkdir(parents=True, exist_ok=True)
                for path in (libraries.fatbin(real), libraries.fatbin(real).with_suffix(".sha256")):
                    shutil.copyfile(path, folder / path.name)

    def build_extension(self, ext):
        libraries = self.get_finalized_command("build_clib")
        target = Path(self.get_ext_fullpath(ext.name))
        try:
            if not libraries.built:
                reasons = "; ".join(dict.fromkeys(libraries.failed.values())) or "csrc has no kernels for this platform"
                raise RuntimeError(f"no instruction set could be built ({reasons})")
            ext.define_macros = macros(libraries.built)
            stamp = Path(self.build_temp, "_core.stamp")
            flags = [info["cflags"] for _, info in self.distribution.libraries]
            wanted = fingerprint(self.compiler, [libraries.built, flags, MODULE_FLAGS, LINK_FLAGS, INCLUDES])
            if libraries.module_objects:
                ext.sources, ext.extra_objects = [], libraries.module_objects
            # the linker's own look at dates leaves libraries out
            self.force = self.compiler.force = not (stamp.exists() and stamp.read_text() == wanted)
            if self.force:
                stamp.unlink(missing_ok=True)
            super().build_extension(ext)
            stamp.write_text(wanted)
        except FAILURES as error:
            target.unlink(missing_ok=True)
            self.report["error"] = f"{type(error).__name__}: {error}"
            shout(
                f"fastae: the native extension could not be built: {error}",
                "fastae is installed without it and will run on the slower Numba backend.",
                "Install a C++17 compiler (Debian: apt install g++, conda: gxx) and install fastae again.",
            )
            if SANITIZE:
                raise

    def copy_extensions_to_source(self):
        # An extension of an earlier build must not outlive a build that failed.
        for old in Path("fastae").glob("_core.*.so"):
            if old.name == Path(self.get_ext_filename("fastae._core")).name:
                old.unlink()
        super().copy_extensions_to_source()

    def write_report(self):
        folder = Path("fastae") if self.inplace else Path(self.build_lib, "fastae")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "_build.json").write_text(json.dumps(self.report, indent=1) + "\n")


setup(
    libraries=[library(isa, flags) for isa, flags in instruction_sets().items()],
    ext_modules=[
        Extension(
            "fastae._core",
            sources=MODULE_SOURCES,
            depends=HEADERS,
            include_dirs=INCLUDES,
            extra_compile_args=MODULE_FLAGS,
            extra_link_args=LINK_FLAGS,
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_py": BuildPackage, "build_clib": BuildLibraries, "build_ext": BuildModule},
)
