"""Everything that only a device can tell, in one command.

    python -m benchmarks.device --device=gpu --output=FILE.json
    make device

Each part is a process of its own with a limit, and all together have one. Parts
that compare bits run side by side, then those that take times, one after
another, in the order of what they are worth. The result is written
after every part, so that an end in between loses nothing; a part that fails is
told and does not stop the rest.
"""

import concurrent.futures
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks.command_line import one_sentence, writable
from benchmarks.device import parts
from benchmarks.device.parts import Part

_DEVICE = flags.DEFINE_enum("device", "gpu", ["gpu", "cpu"], "Where to run.")
_ONLY = flags.DEFINE_list("only", None, "Parts; all where it is not given.")
_TESTS = flags.DEFINE_string("tests", "", "As -k of pytest; all by default.")
_SECONDS = flags.DEFINE_integer("seconds", 480, "For all parts.", 1)
_OUTPUT = flags.DEFINE_string("output", "device.json", "The result.")

_PLATFORM = {"gpu": "cuda", "cpu": "cpu"}
_LAST_LINES = 25


def _outcome(
  part: Part, folder: Path, device: str, end: float
) -> dict[str, Any]:
  """Runs a part: how it ended, how long it took, what it found."""
  seconds = min(part.seconds, int(end - time.monotonic()))
  if seconds < 1:
    return {"ended": "no time was left", "seconds": 0.0, "result": None}
  output = folder / f"{part.name}.out"
  arguments = [x.replace("{output}", str(output)) for x in part.arguments]
  environment = os.environ | {
    "JAX_PLATFORMS": _PLATFORM[device],
    # Several processes share the device.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    # What is compiled beside the tests need not be where times are taken.
    "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    **dict(part.environment),
  }
  start, log = time.monotonic(), folder / f"{part.name}.log"
  with log.open("w", encoding="utf-8") as text:
    try:
      ended = subprocess.run(
        [sys.executable, "-m", part.module, *arguments],
        stdout=text,
        stderr=subprocess.STDOUT,
        env=environment,
        timeout=seconds,
        check=False,
      ).returncode
    except subprocess.TimeoutExpired:
      ended = f"stopped after {seconds} s"
  lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
  outcome: dict[str, Any] = {
    "ended": ended,
    "seconds": round(time.monotonic() - start, 1),
    "result": _read(output),
  }
  if ended != 0:
    outcome["last_lines"] = lines[-_LAST_LINES:]
  _tell(part, outcome, lines)
  return outcome


def _read(output: Path) -> Any:
  """What a part wrote: JSON, or pytest's report; None for nothing."""
  if not output.exists():
    return None
  text = output.read_text(encoding="utf-8")
  return _tests(text) if text.startswith("<") else json.loads(text)


def _tests(report: str) -> dict[str, Any]:
  """Counts, failures and errors of tests, out of pytest's report."""
  cases = list(xml.etree.ElementTree.fromstring(report).iter("testcase"))
  failed, errors = {}, {}
  for case in cases:
    name = f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}"
    for problem in (*case.iter("failure"), *case.iter("error")):
      failed[name] = problem.get("message", "")[:400]
    for entry in case.iter("property"):
      errors[name] = float(entry.get("value", "nan"))
  return {
    "tests": len(cases),
    "passed": len(cases) - len(failed),
    "failed": failed,
    "errors": errors,
  }


def _tell(part: Part, outcome: dict[str, Any], lines: list[str]) -> None:
  print(f"== {part.name}: {outcome['ended']}, {outcome['seconds']} s")
  print("\n".join(lines[-_LAST_LINES:]), flush=True)


def _wanted() -> list[Part]:
  """The parts that were asked for.

  Raises:
    ValueError: There is no such part.
  """
  every = {"gpu": parts.on_gpu, "cpu": parts.on_cpu}[_DEVICE.value](
    _TESTS.value
  )
  names = [part.name for part in every]
  for name in _ONLY.value or ():
    if name not in names:
      raise ValueError(f"--only has {name!r}; parts are {', '.join(names)}")
  return [x for x in every if not _ONLY.value or x.name in _ONLY.value]


def _outcomes(
  wanted: Iterable[Part], folder: Path, device: str, end: float
) -> Iterable[tuple[Part, dict[str, Any]]]:
  """First what may run side by side, then what takes times."""
  wanted = list(wanted)
  beside = [part for part in wanted if not part.alone]
  with concurrent.futures.ThreadPoolExecutor(max(len(beside), 1)) as pool:
    running = {
      pool.submit(_outcome, part, folder, device, end): part for part in beside
    }
    for done in concurrent.futures.as_completed(running):
      yield running[done], done.result()
  for part in wanted:
    if part.alone:
      yield part, _outcome(part, folder, device, end)


def main(argv: list[str]) -> None:
  """Runs all parts; exits with 1 if one failed."""
  with one_sentence(argv):
    wanted = _wanted()
    writable(_OUTPUT)
  found: dict[str, Any] = {}
  end = time.monotonic() + _SECONDS.value
  with tempfile.TemporaryDirectory() as folder:
    for part, outcome in _outcomes(wanted, Path(folder), _DEVICE.value, end):
      found[part.name] = outcome
      text = json.dumps({"device": _DEVICE.value, "parts": found}, indent=1)
      Path(_OUTPUT.value).write_text(text + "\n", encoding="utf-8")
  failed = [name for name, outcome in found.items() if outcome["ended"] != 0]
  print(f"{len(found) - len(failed)} of {len(found)} parts ended well", *failed)
  sys.exit(bool(failed))


if __name__ == "__main__":
  app.run(main)
