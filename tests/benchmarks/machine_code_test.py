"""The check of counts fails on a raised one, and on one above a limit."""

import copy
import json
import subprocess
import sys

import pytest

from benchmarks import machine_code_limits, machine_code_sass
from benchmarks.aot_programs import PROGRAMS
from tests.project import checkout

KEPT = checkout.ROOT / "benchmarks" / "results" / "machine_code.json"
KERNEL = dict.fromkeys(machine_code_sass.COUNTS, 10) | {"spilled_bytes": 0}
STEP = {
  "operation": "gated_delta_rule_step",
  "width": 128,
  "program": {"kernels": 1, "own_kernels": 1, "state_passes": 2},
  "kernels": {"gated_delta_rule_step": KERNEL},
}


def changed(result, **counts):
  """The result with other counts of its kernel."""
  result = copy.deepcopy(result)
  (kernel,) = result["kernels"].values()
  kernel |= counts
  return result


def test_equal_and_smaller_counts_are_well():
  assert machine_code_limits.above([STEP], [STEP]) == []
  assert machine_code_limits.above([changed(STEP, registers=9)], [STEP]) == []


@pytest.mark.parametrize("name", machine_code_sass.COUNTS)
def test_any_raised_count_is_told(name):
  kept = changed(STEP, spilled_bytes=0)
  raised = changed(STEP, **{name: KERNEL[name] + 1})
  told = machine_code_limits.above([raised], [kept])
  assert told[0] == (
    f"gated_delta_rule_step 128: gated_delta_rule_step has {name} "
    f"{KERNEL[name] + 1}, and {KERNEL[name]} are kept"
  )


def test_a_limit_holds_whatever_is_kept():
  over = copy.deepcopy(STEP)
  over["program"] |= {"kernels": 2, "state_passes": 3}
  assert machine_code_limits.above([over], [over]) == [
    "gated_delta_rule_step 128: kernels is 2, and the limit is 1",
    "gated_delta_rule_step 128: state_passes is 3, and the limit is 2",
  ]


def test_only_operations_that_are_named_may_spill():
  spilled = changed(STEP, spilled_bytes=4)
  (told,) = machine_code_limits.above([spilled], [spilled])
  assert told.endswith("spills 4 bytes, and the limit is 0")
  known = spilled | {
    "operation": "kimi_delta_attention",
    "program": {},
  }
  assert machine_code_limits.above([known], [known]) == []


def test_a_page_of_attention_has_a_limit():
  page = STEP | {"operation": "lattice_attention", "program": {}}
  page = changed(page, loop=machine_code_limits.MOST_PER_PAGE[128] + 1)
  (told,) = machine_code_limits.above([page], [page])
  assert "a page takes 700 instructions, and the limit is 699" in told


def test_what_is_not_kept_or_fails_is_told():
  assert machine_code_limits.above([STEP], []) == [
    "gated_delta_rule_step 128 has no counts that are kept"
  ]
  failed = {"operation": "mamba_2", "width": 128, "error": "exit code 1"}
  assert machine_code_limits.above([failed], []) == [
    "mamba_2 128 does not compile: exit code 1"
  ]


def test_every_program_that_is_counted_has_counts_that_are_kept():
  kept = json.loads(KEPT.read_text(encoding="utf-8"))["programs"]
  assert {(x["operation"], x["width"]) for x in kept} == {
    (name, width)
    for name, (_, widths) in PROGRAMS.items()
    if machine_code_limits.is_counted(name)
    for width in widths
  }


def run(tmp_path, *flags, **counted):
  """Runs the benchmark on counts of a file in place of compiling."""
  kept = json.loads(KEPT.read_text(encoding="utf-8"))
  file = tmp_path / "counted.json"
  file.write_text(json.dumps(kept | counted))
  command = [sys.executable, "-m", "benchmarks.machine_code"]
  return subprocess.run(
    [*command, f"--counted={file}", *flags],
    capture_output=True,
    text=True,
    timeout=100,
  )


def small(**counts):
  """The kept counts of a program within all limits, some of them changed."""
  programs = json.loads(KEPT.read_text(encoding="utf-8"))["programs"]
  (found,) = [x for x in programs if x["operation"] == "causal_conv1d_step"]
  return [changed(found, **counts)]


def test_check_exits_with_an_error_on_a_raised_count(tmp_path):
  done = run(tmp_path, "--check", programs=small())
  assert (done.returncode, done.stderr) == (0, "")
  done = run(tmp_path, "--check", programs=small(barriers=999))
  assert done.returncode == 1
  assert "causal_conv1d_step has barriers 999, and " in done.stderr
  assert run(tmp_path, programs=small(barriers=999)).returncode == 0


@pytest.mark.parametrize(
  "made", [{"versions": {"jax": "0.0.1"}}, {"assembler": "0.0.1"}]
)
def test_counts_of_other_versions_are_not_compared(tmp_path, made):
  done = run(tmp_path, "--check", **made)
  assert done.returncode == 1
  assert "machine_code: the counts that are kept were made with" in done.stderr
  assert " 0.0.1" in done.stderr


def test_the_table_has_a_line_per_kernel():
  header, rule, line = machine_code_limits.table_of_kernels([STEP])
  assert header.startswith("| operation | width | kernel | instructions |")
  assert rule.count("|") == header.count("|") == line.count("|")
  name = "gated_delta_rule_step"
  assert line.startswith(f"| {name} | 128 | {name} | 10 | 10 | 0 |")


def test_the_table_of_programs_says_what_did_not_compile():
  failed = {"operation": "mamba_2", "width": 128, "error": "exit code 1"}
  *_, step, told = machine_code_limits.table_of_programs([STEP, failed])
  assert step == "| gated_delta_rule_step | 128 | 1 | 1 |  | 2 |  |  |  |  |"
  assert told == "| mamba_2 | 128 | exit code 1 |  |  |  |  |  |  |  |"


@pytest.mark.parametrize(
  "table",
  [machine_code_limits.table_of_kernels, machine_code_limits.table_of_programs],
)
def test_the_page_of_kernels_has_the_kept_counts(table):
  page = (checkout.ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
  lines = table(json.loads(KEPT.read_text(encoding="utf-8"))["programs"])
  assert len(lines) > 10
  assert [x for x in lines if x not in page] == []
