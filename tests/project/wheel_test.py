"""The wheel holds what the tree holds, and works away from the checkout.

It is built from the source distribution, in a copy of the checkout without the
link, so that nothing is left behind here and both distributions are tried.
The clean environment sees the installed dependencies and nothing else.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

from tests.project import checkout

SHIPPED = {"pyproject.toml", "setup.py", "MANIFEST.in", "README.md"}
SHIPPED |= {"LICENSE", "CHANGELOG.md", "sparse_prefix_jax", "kernels"}
DATA = {".html", ".json", ".safetensors", ".txt", ".typed"}

USE_EVERY_NAME = """
import sparse_prefix_jax

print(sparse_prefix_jax.__file__)
names = sparse_prefix_jax.__all__
for name in names:
  getattr(sparse_prefix_jax, name)
print(" ".join(sorted(names)))
"""

SMALL_PREFILL = """
import numpy as np
from flax import nnx

import sparse_prefix_jax as spj

model = spj.HybridDecoder(spj.preset("tiny"), rngs=nnx.Rngs(0))
cache = spj.PrefixCache(model, capacity=4 << 20)
prompt = np.arange(200, dtype=np.int32)
cold = spj.prefill(model, cache, [prompt])
cache.release(cold.sequences)
warm = spj.prefill(model, cache, [prompt])
assert cold.reports[0].resumed == 0
assert warm.reports[0].resumed > 0
pair = [np.asarray(out.logits[0]).view(np.uint32) for out in (cold, warm)]
assert pair[0].size > 0
print("differing bits", np.bitwise_count(pair[0] ^ pair[1]).sum())
"""


def _run(*command: str | os.PathLike, cwd: pathlib.Path) -> str:
  """Runs a command and returns its output; a failure shows all of it."""
  environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  done = subprocess.run(
    [os.fspath(part) for part in command],
    cwd=cwd,
    env=environment,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stdout
  return done.stdout


def _copy_checkout(target: pathlib.Path) -> None:
  """Copies what a distribution is made of, without the link."""
  ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
  for name in SHIPPED:
    source = checkout.ROOT / name
    if source.is_dir():
      shutil.copytree(source, target / name, symlinks=True, ignore=ignore)
    else:
      shutil.copy(source, target / name)
  (target / "sparse_prefix_jax" / "kernels").unlink()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """The wheel, built by way of the source distribution."""
  source = tmp_path_factory.mktemp("source")
  _copy_checkout(source)
  build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"]
  _run(*build, ".", cwd=source)
  (built,) = (source / "dist").glob("*.whl")
  return built


@pytest.fixture(scope="module")
def clean_python(
  wheel: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
  """The interpreter of a new environment in which the wheel is installed."""
  folder = tmp_path_factory.mktemp("clean")
  venv.create(folder, with_pip=False, symlinks=os.name != "nt")
  python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
  pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
  _run(*pip, "--no-deps", "--no-index", wheel, cwd=folder)
  purelib = _run(
    python,
    "-c",
    "import sysconfig; print(sysconfig.get_path('purelib'))",
    cwd=folder,
  ).strip()
  # Further down the path than the environment's own packages, and its own
  # .pth files (an editable install of the checkout) are not read.
  dependencies = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
  lines = "\n".join(sorted(dependencies)) + "\n"
  pathlib.Path(purelib, "dependencies.pth").write_text(lines, encoding="utf-8")
  return python


def _tree() -> set[str]:
  """The files of the library, by the name under which they ship."""
  files = set()
  for folder in ("sparse_prefix_jax", "kernels"):
    prefix = "sparse_prefix_jax/" if folder == "kernels" else ""
    for path in (checkout.ROOT / folder).rglob("*"):
      if checkout.LINK in path.parents or "__pycache__" in path.parts:
        continue
      if path.is_file() and path.suffix in DATA | {".py"}:
        files.add(prefix + path.relative_to(checkout.ROOT).as_posix())
  return files


def test_the_wheel_holds_what_the_tree_holds(wheel: pathlib.Path) -> None:
  with zipfile.ZipFile(wheel) as archive:
    names = {n for n in archive.namelist() if ".dist-info/" not in n}
    metadata = {n for n in archive.namelist() if ".dist-info/" in n}
  assert names == _tree()
  assert any(name.endswith("/licenses/LICENSE") for name in metadata)


def test_every_public_name_is_imported_from_the_wheel(
  clean_python: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  output = _run(clean_python, "-c", USE_EVERY_NAME, cwd=tmp_path)
  file, names = output.strip().splitlines()
  assert clean_python.parents[1] in pathlib.Path(file).parents
  assert checkout.ROOT not in pathlib.Path(file).parents
  assert {"prefill", "decode", "PrefixCache", "preset"} <= set(names.split())


def test_a_small_prefill_runs_from_the_wheel(
  clean_python: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  output = _run(clean_python, "-c", SMALL_PREFILL, cwd=tmp_path)
  assert "differing bits 0" in output


def test_the_command_line_starts_from_the_wheel(
  clean_python: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  numbers = "import numpy as np; np.save('weights.npy', np.ones(64))"
  _run(clean_python, "-c", numbers, cwd=tmp_path)
  module = [clean_python, "-m", "sparse_prefix_jax", "place"]
  flags = ["--histogram=weights.npy", "--budget=4"]
  output = _run(*module, *flags, cwd=tmp_path)
  assert '"positions"' in output


def test_the_demo_corpus_ships(
  clean_python: pathlib.Path, tmp_path: pathlib.Path
) -> None:
  program = (
    "from sparse_prefix_jax.workloads import demo_corpus as corpus\n"
    "print(len(corpus.load_demo_corpus()), len(corpus.demo_requests(0)))"
  )
  documents, requests = _run(clean_python, "-c", program, cwd=tmp_path).split()
  assert int(documents) >= 4
  assert int(requests) >= 32
