"""What an import loads, asked of fresh interpreters, and what it may need."""

import ast
import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

from tests.project import checkout

OPERATIONS = sorted(
  path.parent.name for path in (checkout.ROOT / "kernels").glob("*/api.py")
)
HEAVY = {"jax", "jaxlib", "flax", "numpy", "absl", "tqdm"}
# What only one command draws, serves or reads with.
EXTRAS = {"jinja2", "matplotlib", "tokenizers", "starlette", "uvicorn"}
TESTS_ONLY = {"chex", "optax", "hypothesis", "beartype", "pytest"}


def output(program: str) -> str:
  """What a fresh interpreter prints."""
  done = subprocess.run(
    [sys.executable, "-c", program],
    cwd=checkout.ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def loaded(program: str) -> set[str]:
  """The names of all modules that a fresh interpreter holds afterwards."""
  tell = "; import json, sys; print(json.dumps(sorted(sys.modules)))"
  return set(json.loads(output(program + tell)))


def packages(modules: set[str]) -> set[str]:
  return {module.partition(".")[0] for module in modules}


def test_the_package_alone_loads_nothing_heavy() -> None:
  modules = loaded("import sparse_prefix_jax")
  ours = {name for name in modules if name.startswith("sparse_prefix_jax")}
  assert ours == {"sparse_prefix_jax"}
  assert not packages(modules) & (HEAVY | EXTRAS | TESTS_ONLY)


def test_the_operations_are_found() -> None:
  assert len(OPERATIONS) >= 6
  assert {"gated_delta_rule", "lattice_attention"} <= set(OPERATIONS)


# One interpreter for all of them: it forgets what is ours before each.
_EACH = """
import importlib, json, sys
for name in {names}:
  for ours in [x for x in sys.modules if x.startswith("sparse_prefix_jax")]:
    del sys.modules[ours]
  importlib.import_module("sparse_prefix_jax.kernels." + name)
  print(json.dumps(sorted(sys.modules)))
"""


@pytest.fixture(scope="module")
def loaded_by() -> dict[str, set[str]]:
  """The names of all modules that are there after importing one operation."""
  lines = output(_EACH.format(names=OPERATIONS)).splitlines()
  return {
    name: set(json.loads(line))
    for name, line in zip(OPERATIONS, lines, strict=True)
  }


@pytest.mark.parametrize("operation", OPERATIONS)
def test_one_operation_loads_jax_and_nothing_above_it(
  operation: str, loaded_by: dict[str, set[str]]
) -> None:
  kernels, modules = "sparse_prefix_jax.kernels", loaded_by[operation]
  ours = {name for name in modules if name.startswith("sparse_prefix_jax")}
  above = {name for name in ours if not name.startswith(kernels)}
  assert above == {"sparse_prefix_jax"}
  others = {f"{kernels}.{name}" for name in OPERATIONS if name != operation}
  assert not ours & others
  assert "jax" in modules
  assert not packages(modules) & ({"flax", "safetensors"} | EXTRAS | TESTS_ONLY)


@pytest.mark.parametrize("name", ["solve_placement", "simulate"])
def test_what_replays_and_places_loads_no_extra(name: str) -> None:
  modules = loaded(f"from sparse_prefix_jax import {name}")
  assert not packages(modules) & (EXTRAS | {"chex"})


def test_the_command_line_loads_no_extra() -> None:
  modules = loaded("import sparse_prefix_jax.__main__")
  assert not packages(modules) & (EXTRAS | {"chex"})


@pytest.mark.parametrize(
  ("package", "extra", "words"),
  [
    ("matplotlib", "demo", "demo --out={out}"),
    ("tokenizers", "demo", "demo --out={out}"),
    ("tokenizers", "text", "generate --prompt=a"),
    ("tokenizers", "server", "serve"),
  ],
)
def test_a_command_without_its_extra_ends_in_one_sentence(
  package: str, extra: str, words: str, tmp_path: pathlib.Path
) -> None:
  """Before anything is done, and so with nothing written."""
  argv = ["", *words.format(out=tmp_path).split()]
  program = (
    f"import sys; sys.modules[{package!r}] = None; "
    "from sparse_prefix_jax import __main__ as main; "
    f"sys.exit(main.run({argv!r}))"
  )
  done = subprocess.run(
    [sys.executable, "-c", program],
    cwd=checkout.ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr == (
    f"sparse_prefix_jax: {package} is not installed; "
    f"`pip install 'sparse-prefix-jax[{extra}]'` installs it\n"
  )
  assert not list(tmp_path.iterdir())


EXTRA_FOLDERS = ("sparse_prefix_jax/serving/server",)


def test_nobody_imports_a_folder_that_is_an_extra() -> None:
  for folder in EXTRA_FOLDERS:
    name = folder.replace("/", ".")
    users = {
      path.parent.relative_to(checkout.ROOT).as_posix()
      for path in checkout.library_files()
      if f"from {name}" in path.read_text(encoding="utf-8")
    }
    assert users == {folder}


def _imported() -> set[str]:
  """Top-level names of everything foreign that the library imports.

  But for folders that are an extra as a whole: a command imports them late.
  """
  names = set()
  for path in checkout.library_files():
    if path.parent.relative_to(checkout.ROOT).as_posix() in EXTRA_FOLDERS:
      continue
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.Import):
        names |= {alias.name for alias in node.names}
      elif isinstance(node, ast.ImportFrom) and node.level == 0:
        names.add(node.module or "")
  foreign = packages(names) - set(sys.stdlib_module_names)
  return foreign - {"sparse_prefix_jax"}


def _project() -> dict:
  text = (checkout.ROOT / "pyproject.toml").read_text(encoding="utf-8")
  return tomllib.loads(text)["project"]


def _names(requirements: list[str]) -> set[str]:
  """Distributions, as their metadata spells them in lower case."""
  found = (re.match(r"[A-Za-z0-9_.-]+", text) for text in requirements)
  return {match.group().lower() for match in found if match}


def test_a_dependency_is_what_the_library_imports() -> None:
  """No more: what is never imported, or by one command only, is none."""
  owners = importlib.metadata.packages_distributions()
  imported = {owners[name][0].lower() for name in _imported()}
  assert imported == _names(_project()["dependencies"])


def test_extras_hold_what_one_command_imports() -> None:
  extras = _project()["optional-dependencies"]
  assert _names(extras["plot"]) == {"matplotlib"}
  assert _names(extras["demo"]) == {"matplotlib", "tokenizers"}
  assert _names(extras["text"]) == {"jinja2", "tokenizers"}
  assert _names(extras["train"]) == {"matplotlib", "optax", "safetensors"}
  needed = _names(extras["demo"]) | _names(extras["text"]) | {"chex"}
  assert needed <= _names(extras["test"])


def test_extras_have_names_that_every_pip_reads_alike() -> None:
  """The pip of Python 3.11 asks for `a_b` where wheels say `a-b`: nothing."""
  extras = _project()["optional-dependencies"]
  assert extras and all(name.isalnum() for name in extras)
