"""One part after another: what fails or does not end stops nothing."""

import json
import subprocess
import sys
import time

import pytest

from benchmarks.device import __main__ as device
from benchmarks.device import parts
from benchmarks.device.parts import Part
from sparse_prefix_jax.models.presets import PRESETS
from tests.project import checkout

REPORT = """<testsuites><testsuite>
<testcase classname="tests.a.TestA" name="test_b[c]">
<properties><property name="error" value="0.5"/></properties></testcase>
<testcase classname="tests.a.TestA" name="test_d">
<failure message="AssertionError: 1 bit"/></testcase>
</testsuite></testsuites>"""


def script(path, text):
  """A module in a folder that parts are run in."""
  (path / "module_of_a_part.py").write_text(text)
  return "module_of_a_part"


def later():
  """Time enough."""
  return time.monotonic() + 600


@pytest.fixture
def modules(monkeypatch, tmp_path):
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("modules")
def test_what_a_part_wrote_is_its_result(tmp_path):
  text = "import sys; open(sys.argv[1], 'w').write('[1, 2]')"
  part = Part("good", script(tmp_path, text), ("{output}",))
  outcome = device._outcome(part, tmp_path, "cpu", later())
  assert outcome["ended"] == 0
  assert outcome["result"] == [1, 2]
  assert "last_lines" not in outcome


@pytest.mark.usefixtures("modules")
def test_a_part_that_fails_tells_its_last_lines(tmp_path):
  text = "print('before'); raise SystemExit('no such device')"
  part = Part("bad", script(tmp_path, text), ("{output}",))
  outcome = device._outcome(part, tmp_path, "cpu", later())
  assert outcome["ended"] == 1
  assert outcome["result"] is None
  assert sorted(outcome["last_lines"]) == ["before", "no such device"]


@pytest.mark.usefixtures("modules")
def test_a_part_that_does_not_end_is_stopped(tmp_path):
  text = "import time\nwhile True: time.sleep(1)"
  part = Part("endless", script(tmp_path, text), seconds=1)
  outcome = device._outcome(part, tmp_path, "cpu", later())
  assert outcome["ended"] == "stopped after 1 s"


@pytest.mark.usefixtures("modules")
def test_no_part_begins_when_the_time_is_over(tmp_path):
  part = Part("late", script(tmp_path, "raise SystemExit(1)"))
  outcome = device._outcome(part, tmp_path, "cpu", time.monotonic())
  assert outcome["ended"] == "no time was left"


@pytest.mark.usefixtures("modules")
def test_times_are_taken_alone_and_last(tmp_path):
  name = script(tmp_path, "pass")
  wanted = [
    Part("timed", name, alone=True),
    Part("bits", name),
    Part("also_timed", name, alone=True),
  ]
  ran = [
    part.name for part, _ in device._outcomes(wanted, tmp_path, "cpu", later())
  ]
  assert ran == ["bits", "timed", "also_timed"]


def test_a_report_of_tests_becomes_counts_failures_and_errors():
  assert device._tests(REPORT) == {
    "tests": 2,
    "passed": 1,
    "failed": {"TestA.test_d": "AssertionError: 1 bit"},
    "errors": {"TestA.test_b[c]": 0.5},
  }


def test_an_unknown_part_is_refused():
  command = [sys.executable, "-m", "benchmarks.device", "--device=cpu"]
  ended = subprocess.run(
    [*command, "--only=kernel"],
    cwd=checkout.ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert ended.returncode == 1
  assert "--only has 'kernel'; parts are kernels_right, rows" in ended.stderr


def test_parts_of_a_gpu_have_names_of_their_own_and_end_in_time():
  found = parts.on_gpu()
  assert len({part.name for part in found}) == len(found)
  beside = max(part.seconds for part in found if not part.alone)
  assert all(part.seconds < 600 for part in found)
  assert beside <= 240


def test_every_tiny_model_is_checked_on_a_gpu():
  given = [x for part in parts.on_gpu() for x in part.arguments]
  found = [
    name
    for x in given
    if x.startswith("--model=") and "_tiny" in x
    for name in x.removeprefix("--model=").split(",")
  ]
  # One of that name is no small model.
  wanted = {x for x in PRESETS if x.endswith("_tiny")} - {"granite_4_h_tiny"}
  assert sorted(found) == sorted(wanted)


@pytest.mark.slow
def test_the_command_runs_to_its_end_on_a_cpu(tmp_path):
  output = tmp_path / "device.json"
  command = [sys.executable, "-m", "benchmarks.device", "--device=cpu"]
  subprocess.run(
    [*command, f"--output={output}"], cwd=checkout.ROOT, check=True
  )
  found = json.loads(output.read_text())["parts"]
  assert set(found) == {part.name for part in parts.on_cpu()}
  assert found["kernels_right"]["result"]["failed"] == {}
