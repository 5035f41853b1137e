import json
import os
import pathlib
import subprocess
import sys

import pytest
from absl import flags

from benchmarks import command_line
from sparse_prefix_jax import preset

ROOT = pathlib.Path(__file__).parents[2]


def listed(text):
  values = flags.FlagValues()
  flag = flags.DEFINE_list("sizes", text, "Sizes.", flag_values=values)
  values(["program"])
  return flag


def test_numbers_of_a_list():
  assert command_line.whole_numbers(listed("64,128")) == [64, 128]
  bounds = {"least": 64, "most": 128, "multiple_of": 64, "ascending": 2}
  assert command_line.whole_numbers(listed("64,128"), **bounds) == [64, 128]


@pytest.mark.parametrize(
  "text, bounds, sentence",
  [
    ("64,x", {}, "--sizes has 'x'; it takes whole numbers from 1"),
    ("64,-1", {}, "--sizes has '-1'"),
    ("1.5", {}, "--sizes has '1.5'"),
    ("0", {}, "--sizes has '0'"),
    (
      "64,129",
      {"most": 128},
      "has '129'; it takes whole numbers from 1 to 128",
    ),
    ("64,100", {"multiple_of": 64}, "has '100'; .*, multiples of 64"),
    ("", {}, "--sizes needs at least 1"),
    ("64,128", {"ascending": 3}, "--sizes needs at least 3"),
    ("64,64", {"ascending": 2}, "--sizes must ascend"),
    ("128,64", {"ascending": 2}, "--sizes must ascend"),
  ],
)
def test_bad_lists_are_refused(text, bounds, sentence):
  with pytest.raises(ValueError, match=sentence):
    command_line.whole_numbers(listed(text), **bounds)


def test_a_ladder_is_the_models_own_unless_it_is_given():
  assert command_line.rungs(listed("1,16")) == {"ladder": (1, 16)}
  assert command_line.rungs(listed(None)) == {}
  with pytest.raises(ValueError, match="must ascend"):
    command_line.rungs(listed("4,4"))


def test_models_by_their_names():
  found = command_line.models_of(listed("tiny,demo"))
  assert list(found) == ["tiny", "demo"]
  assert found["demo"] == preset("demo")


@pytest.mark.parametrize(
  "text, sentence",
  [
    ("tiny,tiny", "--sizes needs presets, each once"),
    ("", "--sizes needs presets"),
    ("tiny,large", "--sizes: .*large"),
  ],
)
def test_models_that_there_are_not_are_refused(text, sentence):
  with pytest.raises(ValueError, match=sentence):
    command_line.models_of(listed(text))


def test_fractions_and_integers():
  assert command_line.number("3", "it") == 3
  assert command_line.number("0.5", "it") == 0.5
  with pytest.raises(ValueError, match="budget of 'dp:x' is no number"):
    command_line.number("x", "budget of 'dp:x'")


def output(path):
  values = flags.FlagValues()
  flag = flags.DEFINE_string("output", str(path), "File.", flag_values=values)
  values(["program"])
  return flag


def test_a_check_leaves_files_as_they_are(tmp_path):
  old, new = tmp_path / "old.json", tmp_path / "made" / "new.json"
  old.write_text("kept")
  command_line.writable(output(old), output(new))
  assert old.read_text() == "kept"
  assert new.parent.is_dir() and not new.exists()


def test_what_cannot_be_written_is_one_sentence(tmp_path):
  folder = output(tmp_path)
  with (
    pytest.raises(SystemExit) as ended,
    command_line.one_sentence(["bench.py"]),
  ):
    command_line.writable(folder)
  assert ended.value.code == f"bench: Is a directory: {tmp_path}"


def test_what_draws_is_missed_before_the_work(monkeypatch):
  assert command_line.figures(output("")) is None
  assert command_line.figures(output("a.png")).Figure
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
  with pytest.raises(
    ImportError, match=r"pip install 'sparse-prefix-jax\[plot\]'"
  ):
    command_line.figures(output("a.png"))


def test_words_and_missing_packages_are_refused():
  with (
    pytest.raises(SystemExit, match="bench: takes no words without --"),
    command_line.one_sentence(["bench.py", "word"]),
  ):
    raise AssertionError("not reached")
  with pytest.raises(ImportError, match="no_such_package is not installed"):
    command_line.installed("no_such_package")


def test_errors_of_ours_keep_their_traceback():
  with pytest.raises(KeyError), command_line.one_sentence(["bench.py"]):
    raise KeyError("bug")


REFUSED = [
  (["aot", "--targets=v5"], "aot: --targets has 'v5'; it knows v5e, "),
  (["growth", "--lengths=1024,x,4096"], "growth: --lengths has 'x'"),
  (["growth", "--entries=10,100"], "growth: --entries needs at least 3"),
  (["capture", "--preset=huge"], "capture: --preset: preset is 'huge'"),
  (["capture", "--states=9999"], "capture: --states is 9999; it must be <="),
  (["placement", "--output=/"], "placement: Is a directory: /"),
  (["path_independence", "word"], "path_independence: takes no words"),
  (["serving", "--loads=0.8,0"], "serving: --loads has '0'; a load is above"),
  (["serving", "--loads="], "serving: --loads needs at least one"),
  (["serving", "--placements=last,x"], "serving: placement must be one of"),
  (["serving", "--placements="], "serving: --placements needs at least one"),
  (
    ["decode_against_transformers", "--batches=0"],
    "decode_against_transformers: --batches has '0'",
  ),
  (
    ["prefill_against_transformers", "--lengths=1000"],
    "prefill_against_transformers: --lengths has '1000'",
  ),
  (
    ["paper_dry_run", "--anchor=/no/such", "--data=."],
    "paper_dry_run: No such file or directory: /no/such",
  ),
  (
    ["pareto", "--requests=x.npz", "--strategies=dp:x"],
    "pareto: budget of 'dp:x' is no number",
  ),
]
# Each in a process of its own, forked from one that has imported what all need,
# and has no backend yet, so no threads.
FORKS = """
import json, os, runpy, sys
import benchmarks.command_line
from sparse_prefix_jax import *
for number, (module, *arguments) in enumerate(json.loads(sys.argv[1])):
  child = os.fork()
  if child == 0:
    for stream in (1, 2):
      os.dup2(os.open(f"{number}.{stream}", os.O_WRONLY | os.O_CREAT), stream)
    sys.argv[1:] = arguments
    runpy.run_module(f"benchmarks.{module}", None, "__main__", alter_sys=True)
    sys.exit()
  print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
  """Status, output and errors of each of these command lines."""
  folder = tmp_path_factory.mktemp("refusals")
  given = json.dumps([arguments for arguments, _ in REFUSED])
  path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  done = subprocess.run(
    [sys.executable, "-c", FORKS, given],
    cwd=folder,
    env={**os.environ, "PYTHONPATH": path},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0 and not done.stderr, done.stderr
  return [
    (int(status), *((folder / f"{i}.{n}").read_text("utf-8") for n in (1, 2)))
    for i, status in enumerate(done.stdout.split())
  ]


@pytest.mark.parametrize(
  "number", range(len(REFUSED)), ids=[" ".join(given) for given, _ in REFUSED]
)
def test_every_benchmark_refuses_before_it_measures(number, refusals):
  status, output, errors = refusals[number]
  assert status == 1
  assert errors.startswith(REFUSED[number][1]), errors
  assert "Traceback" not in errors and not output
