"""Every block of Python in README.md and docs/ runs as it stands, and docstrings name what functions take."""

import importlib
import inspect
import re
import warnings
from pathlib import Path

import pytest

import fastae

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    names: dict = {"__name__": "page"}
    for block in re.finditer(r"```python\n(.*?)```", text, re.S):
        line = text[: block.start()].count("\n") + 1
        code = compile("\n" * line + block.group(1), str(page), "exec")  # so that a traceback names the page's line
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            exec(code, names)


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def public_callables():
    """Name → (function, docstrings that may name its parameters), of all that is public."""
    found = {}
    for part in ("", ".likelihoods", ".schedules", *(f".{name}" for name in fastae._MODULES)):
        module = importlib.import_module(f"fastae{part}")
        shared = [module.__doc__] if part == ".ops" else []  # which says what all its functions take
        here = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        for name in getattr(module, "__all__", [name for name in here if not name.startswith("_")]):
            value = getattr(module, name)
            if not callable(value) or not value.__module__.startswith("fastae") or hasattr(value, "__cause__"):
                continue
            found[f"{part}.{name}"] = value, [inspect.getdoc(value), *shared]
            for of, method in inspect.getmembers(value, callable) if inspect.isclass(value) else ():
                if not of.startswith("_") and (getattr(method, "__module__", None) or "").startswith("fastae"):
                    found[f"{part}.{name}.{of}"] = method, [inspect.getdoc(method), inspect.getdoc(value)]
    return found


def test_docstrings_name_every_parameter():
    unnamed, callables = {}, public_callables()
    assert len(callables) > 200
    for name, (function, docs) in callables.items():
        words = set(re.findall(r"\w+", " ".join(filter(None, docs)))) | {"self"}
        takes = [] if getattr(function, "_is_protocol", False) else inspect.signature(function).parameters
        left_out = [parameter for parameter in takes if parameter not in words]
        if not docs[0] or left_out:
            unnamed[name] = left_out
    assert not unnamed
