"""Every source and every test belongs to a target of the one BUILD file.

BUILD is Starlark without anything that Python would read differently, so it is
run here as it stands, with functions that note what each target was given.
"""

import ast
import glob as file_glob
import os
import pathlib
import re
import tomllib
from collections.abc import Sequence
from typing import Any

import pytest

from tests.project import checkout

BUILD = checkout.ROOT / "BUILD"
TARGET_KINDS = ("py_binary", "py_library", "py_test")


def _glob(include: Sequence[str], exclude: Sequence[str] = ()) -> list[str]:
  """Bazel's glob: files only, links followed."""

  def matches(patterns: Sequence[str]) -> set[str]:
    return {
      path
      for pattern in patterns
      for path in file_glob.glob(
        pattern, root_dir=checkout.ROOT, recursive=True
      )
      if (checkout.ROOT / path).is_file() and "__pycache__" not in path
    }

  return sorted(matches(include) - matches(exclude))


def _evaluate() -> tuple[dict[str, dict], dict[str, Any]]:
  """Runs BUILD: targets by name, with their kind, and its variables."""
  targets: dict[str, dict] = {}

  def rule(kind: str):
    def declare(*, name: str, **attributes) -> None:
      assert name not in targets, f"{name} is declared twice"
      targets[name] = {"kind": kind, **attributes}

    return declare

  scope: dict[str, Any] = {
    "__builtins__": {"len": len},
    "load": lambda *_: None,
    "package": lambda **_: None,
    "exports_files": lambda _: None,
    "requirement": lambda name: f"@pypi//{name}",
    "glob": _glob,
    **{kind: rule(kind) for kind in TARGET_KINDS},
  }
  exec(compile(BUILD.read_text(encoding="utf-8"), BUILD, "exec"), scope)
  return targets, scope


TARGETS, VARIABLES = _evaluate()


def _real(names: Sequence[str]) -> set[pathlib.Path]:
  return {(checkout.ROOT / name).resolve() for name in names}


def _owned() -> set[pathlib.Path]:
  return {p for target in TARGETS.values() for p in _real(target["srcs"])}


@pytest.mark.parametrize(
  "folder", ["sparse_prefix_jax", "kernels", "tests", "benchmarks"]
)
def test_every_source_belongs_to_a_target(folder: str) -> None:
  files = {path.resolve() for path in checkout.python_files(folder)}
  assert not files - _owned()


def test_every_test_file_is_a_test_target() -> None:
  tests = {name: t for name, t in TARGETS.items() if t["kind"] == "py_test"}
  files = [p for p in _glob(["tests/**/*.py"]) if p.endswith("_test.py")]
  assert sorted(tests) == sorted(f[:-3].replace("/", "_") for f in files)
  for target in tests.values():
    assert target["args"][0] in target["srcs"]
    assert target["main"] in target["srcs"]


def test_targets_name_files_and_targets_that_exist() -> None:
  for target in TARGETS.values():
    for name in [*target["srcs"], *target.get("data", [])]:
      assert (checkout.ROOT / name).is_file(), name
    for dependency in target.get("deps", []):
      known = dependency.startswith("@pypi//") or dependency[1:] in TARGETS
      assert known, dependency


def test_the_library_ships_each_source_once() -> None:
  sources = TARGETS["sparse_prefix_jax"]["srcs"]
  assert len(_real(sources)) == len(sources)
  assert _real(sources) == {p.resolve() for p in checkout.library_files()}


def test_there_is_one_build_file() -> None:
  found = []
  for folder, inner, files in os.walk(checkout.ROOT):
    inner[:] = [
      name
      for name in inner
      if not name.startswith(".") and name not in ("build", "dist")
    ]
    found += [os.path.join(folder, f) for f in files if f.startswith("BUILD")]
  assert found == [str(BUILD)]


def test_tests_are_declared_by_one_comprehension() -> None:
  tree = ast.parse(BUILD.read_text(encoding="utf-8"))
  calls = [
    node
    for node in ast.walk(tree)
    if isinstance(node, ast.Call)
    and isinstance(node.func, ast.Name)
    and node.func.id == "py_test"
  ]
  comprehensions = [n for n in ast.walk(tree) if isinstance(n, ast.ListComp)]
  assert len(calls) == 1
  assert any(c.elt is calls[0] for c in comprehensions)


def _name(requirement: str) -> str:
  """The normalised name in a requirement such as `ml_dtypes>=0.5`."""
  name = re.match(r"[A-Za-z0-9_.-]+", requirement)
  assert name, requirement
  return re.sub(r"[-_.]+", "-", name.group()).lower()


def test_bazel_and_pip_know_the_same_requirements() -> None:
  text = (checkout.ROOT / "pyproject.toml").read_text(encoding="utf-8")
  project = tomllib.loads(text)["project"]
  needed = {_name(r) for r in project["dependencies"]}
  tested = {_name(r) for r in project["optional-dependencies"]["test"]}
  demo = {_name(r) for r in project["optional-dependencies"]["demo"]}
  text = {_name(r) for r in project["optional-dependencies"]["text"]}
  server = {_name(r) for r in project["optional-dependencies"]["server"]}
  assert needed == set(VARIABLES["DEPENDENCIES"])
  assert server == set(VARIABLES["SERVER_DEPENDENCIES"])
  assert demo == set(VARIABLES["DEMO_DEPENDENCIES"])
  assert text == set(VARIABLES["TEXT_DEPENDENCIES"])
  assert tested == set(VARIABLES["TEST_DEPENDENCIES"])
  lock = (checkout.ROOT / "requirements_lock.txt").read_text(encoding="utf-8")
  locked = {_name(line) for line in lock.splitlines() if line[:1].isalnum()}
  assert needed | demo | text | server | tested <= locked


def test_the_version_is_the_same_everywhere() -> None:
  text = (checkout.ROOT / "pyproject.toml").read_text(encoding="utf-8")
  version = tomllib.loads(text)["project"]["version"]
  module = (checkout.ROOT / "MODULE.bazel").read_text(encoding="utf-8")
  changes = (checkout.ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
  assert f'\n    version = "{version}",' in module
  assert f"\n## [{version}]" in changes
