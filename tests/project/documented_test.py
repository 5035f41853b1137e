"""What is written for readers runs: docstrings, README, the notebook."""

import ast
import doctest
import importlib
import inspect
import os
import pathlib
import re

import nbclient
import nbformat
import pytest

import sparse_prefix_jax
from tests.project import checkout

README = checkout.ROOT / "README.md"
NOTEBOOK = checkout.ROOT / "colab" / "quickstart.ipynb"
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
DOCTEST_FLAGS = (
  doctest.NORMALIZE_WHITESPACE
  | doctest.ELLIPSIS
  | doctest.IGNORE_EXCEPTION_DETAIL
)


def _modules_with_examples() -> list[str]:
  return [
    checkout.module_name(path)
    for path in checkout.library_files()
    if ">>> " in path.read_text(encoding="utf-8")
  ]


def _public_names() -> list[str]:
  """What `__init__.py` exports, in the form `from .x import y as y`."""
  return [name for name in vars(sparse_prefix_jax) if _is_public(name)]


def _is_public(name: str) -> bool:
  value = getattr(sparse_prefix_jax, name)
  return not name.startswith("_") and not inspect.ismodule(value)


@pytest.mark.parametrize("module", _modules_with_examples())
def test_examples_of_docstrings_run(module: str) -> None:
  failed, tried = doctest.testmod(
    importlib.import_module(module), optionflags=DOCTEST_FLAGS
  )
  assert tried > 0, f"{module} shows an example that doctest does not find"
  assert failed == 0


def test_the_package_exports_its_names_on_one_page() -> None:
  path = pathlib.Path(sparse_prefix_jax.__file__ or "")
  assert path.is_relative_to(checkout.ROOT)
  body = ast.parse(path.read_text(encoding="utf-8")).body[1:]
  for statement in body:
    assert isinstance(statement, ast.ImportFrom), ast.unparse(statement)
    assert all(alias.asname == alias.name for alias in statement.names)
  names = {"HybridDecoder", "OverlapHistogram", "PrefixCache", "decode"}
  names |= {"load_pretrained", "observe", "prefill", "preset", "simulate"}
  names |= {"scan_with_capture", "solve_placement"}
  assert names <= set(_public_names())


@pytest.mark.parametrize("name", _public_names())
def test_every_public_name_is_documented(name: str) -> None:
  value = getattr(sparse_prefix_jax, name)
  if not callable(value):
    return
  text = inspect.getdoc(value) or ""
  assert len(text.split()) >= 5, f"{name} has no docstring of its own"
  assert not text.startswith(f"{name}("), f"{name} has a generated docstring"


def test_the_example_of_the_readme_runs(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """All blocks in order, in one namespace, in an empty folder."""
  monkeypatch.chdir(tmp_path)
  blocks = PYTHON_BLOCK.findall(README.read_text(encoding="utf-8"))
  assert blocks
  scope: dict[str, object] = {"__name__": "readme"}
  for block in blocks:
    exec(compile(block, "README.md", "exec"), scope)


def test_the_notebook_runs(tmp_path: pathlib.Path) -> None:
  """Every cell but those tagged `install`, in a kernel of its own."""
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  tagged = [
    c for c in notebook.cells if "install" in c.metadata.get("tags", [])
  ]
  notebook.cells = [c for c in notebook.cells if c not in tagged]
  assert len(tagged) == 1
  path = os.pathsep.join([str(checkout.ROOT), os.environ.get("PYTHONPATH", "")])
  client = nbclient.NotebookClient(
    notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}
  )
  client.execute(env={**os.environ, "PYTHONPATH": path})
  executed = [c for c in notebook.cells if c.get("execution_count")]
  assert len(executed) >= 4
