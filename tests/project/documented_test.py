"""What is written for readers runs: docstrings, pages, notebooks."""

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
from sparse_prefix_jax.cache.index import EVICTIONS, unregister_eviction
from sparse_prefix_jax.placement import PLACEMENTS, unregister_placement
from tests.project import checkout

NOTEBOOKS = sorted((checkout.ROOT / "colab").glob("*.ipynb"))
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = sorted(
  str(page.relative_to(checkout.ROOT))
  for page in [
    checkout.ROOT / "README.md",
    *(checkout.ROOT / "docs").rglob("*.md"),
  ]
  if PYTHON_BLOCK.search(page.read_text(encoding="utf-8"))
)
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
  return sparse_prefix_jax.__all__


@pytest.mark.parametrize("module", _modules_with_examples())
def test_examples_of_docstrings_run(module: str) -> None:
  failed, tried = doctest.testmod(
    importlib.import_module(module), optionflags=DOCTEST_FLAGS
  )
  assert tried > 0, f"{module} shows an example that doctest does not find"
  assert failed == 0


# What is returned or raised is shown by the examples of what does it.
RESULTS = {"CapacityError", "CapturedScan", "DecodeOutput", "Placement"}
RESULTS |= {"PrefillOutput", "PrefillReport", "SequenceHandle", "TreePlacement"}
RESULTS |= {"Ending", "Finished", "RequestHandle", "Started", "TokenEvent"}
RESULTS |= {"Completion", "Delta", "Generation", "Reason", "StoreStats"}


def test_what_is_called_has_an_example() -> None:
  assert set(_public_names()) >= RESULTS
  for name in set(_public_names()) - RESULTS:
    doc = getattr(sparse_prefix_jax, name).__doc__ or ""
    assert ">>> " in doc or "Example:" in doc, name


def _exports() -> list[ast.ImportFrom]:
  """The imports that a type checker reads, under TYPE_CHECKING."""
  path = pathlib.Path(sparse_prefix_jax.__file__ or "")
  assert path.is_relative_to(checkout.ROOT)
  body = ast.parse(path.read_text(encoding="utf-8")).body
  guarded = next(s for s in body if isinstance(s, ast.If))
  return [s for s in guarded.body if isinstance(s, ast.ImportFrom)]


def test_the_package_exports_its_names_on_one_page() -> None:
  """What a type checker reads is what `__getattr__` finds."""
  names = {"HybridDecoder", "OverlapHistogram", "PrefixCache", "decode"}
  names |= {"load_pretrained", "observe", "prefill", "preset", "simulate"}
  names |= {"scan_with_capture", "solve_placement"}
  assert names <= set(_public_names())
  seen = set()
  for statement in _exports():
    module = importlib.import_module(statement.module or "")
    for alias in statement.names:
      assert alias.asname == alias.name
      value = getattr(sparse_prefix_jax, alias.name)
      assert value is getattr(module, alias.name)
      seen.add(alias.name)
  assert seen == set(_public_names()) <= set(dir(sparse_prefix_jax))


def test_a_name_that_does_not_exist_is_refused() -> None:
  name = "prefil"
  with pytest.raises(AttributeError, match=r"no attribute 'prefil'"):
    getattr(sparse_prefix_jax, name)


@pytest.mark.parametrize("name", _public_names())
def test_every_public_name_is_documented(name: str) -> None:
  value = getattr(sparse_prefix_jax, name)
  if not callable(value):
    return
  text = inspect.getdoc(value) or ""
  assert len(text.split()) >= 5, f"{name} has no docstring of its own"
  assert not text.startswith(f"{name}("), f"{name} has a generated docstring"


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run(
  page: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """All blocks in order, in one namespace, in an empty folder."""
  monkeypatch.chdir(tmp_path)
  text = (checkout.ROOT / page).read_text(encoding="utf-8")
  blocks = PYTHON_BLOCK.findall(text)
  assert blocks
  scope: dict[str, object] = {"__name__": "page"}
  evictions, placements = {*EVICTIONS}, {*PLACEMENTS}
  try:
    for block in blocks:
      exec(compile(block, page, "exec"), scope)
  finally:  # Other tests of this process give the same names.
    for name in {*EVICTIONS} - evictions:
      unregister_eviction(name)
    for name in {*PLACEMENTS} - placements:
      unregister_placement(name)


def test_there_are_notebooks() -> None:
  names = {path.stem for path in NOTEBOOKS}
  assert names >= {"quickstart", "placement"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
  """Every cell but those tagged `install`, in a kernel of its own."""
  notebook = nbformat.read(path, as_version=4)
  tagged = [
    c for c in notebook.cells if "install" in c.metadata.get("tags", [])
  ]
  notebook.cells = [c for c in notebook.cells if c not in tagged]
  assert len(tagged) == 1
  paths = [str(checkout.ROOT), os.environ.get("PYTHONPATH", "")]
  client = nbclient.NotebookClient(
    notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}
  )
  client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
  executed = [c for c in notebook.cells if c.get("execution_count")]
  assert len(executed) >= 4
