"""Commands in general: help, streams that close, what any error becomes."""

import errno
import gc
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest

import sparse_prefix_jax
from sparse_prefix_jax import __main__ as main
from sparse_prefix_jax.commands import interruptions, place
from tests.commands.refusal import refused


def started(line):
  """Runs a shell line in which $MAIN is the command line; its status, stderr.

  Only the status of the first program of a pipe counts.
  """
  root = pathlib.Path(sparse_prefix_jax.__file__).parents[1]
  done = subprocess.run(
    ["bash", "-c", line + "; exit ${PIPESTATUS[0]}"],
    env={
      **os.environ,
      "MAIN": f"{sys.executable} -m sparse_prefix_jax",
      "PYTHONPATH": str(root),
    },
    capture_output=True,
    text=True,
    check=False,
  )
  return done.returncode, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_is_no_error(monkeypatch, unbuffered):
  monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
  assert started("$MAIN --help | true") == (0, "")


def test_printing_survives_closed_and_full_streams(tmp_path):
  path = tmp_path / "h.npy"
  np.save(path, np.array([0, 5, 0, 1]))
  place = f"$MAIN place --histogram={path} --budget=1"
  assert started(f"{place} | true") == (0, "")
  full = "sparse_prefix_jax: No space left on device\n"
  assert started("$MAIN --help >/dev/full") == (2, full)
  # The sentence of a refusal is what the pipe closes on.
  assert started("$MAIN place 2>&1 >/dev/null | true") == (2, "")
  assert started("$MAIN place 2>&-")[0] == 2


def test_progress_that_nobody_reads_ends_the_work(command, monkeypatch):
  def broken(_):
    raise BrokenPipeError

  hushed = []
  monkeypatch.setattr(main, "hush", hushed.append)
  monkeypatch.setattr(place, "place_command", broken)
  result = command("place", "--histogram=h.npy", "--budget=1")
  assert result == (141, "", "") and len(hushed) == 1


def test_a_full_disk_is_named(command, tmp_path, tokens, monkeypatch):
  def full(path, *_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(pathlib.Path, "write_text", full)
  report = tmp_path / "report.json"
  status, _, err = command(
    "simulate",
    f"--requests={tokens}",
    "--capacity=sequences:3",
    f"--report={report}",
  )
  assert status == 2
  assert err.endswith(f"No space left on device: {report}\n")


@pytest.mark.parametrize(
  "error, sentence",
  [
    (OverflowError("int too large"), "the input is too large: int too large"),
    (MemoryError(), "the input is too large: MemoryError"),
    (RecursionError("depth"), "the input is too large: depth"),
    (OSError("odd"), "sparse_prefix_jax: odd"),
    (OSError(5, "Input/output error"), "sparse_prefix_jax: Input/output error"),
    (ValueError("got " + "7" * 5000), "got 7777777777... (long)"),
  ],
)
def test_last_net(command, monkeypatch, error, sentence):
  def fail(_):
    raise error

  monkeypatch.setattr(place, "place_command", fail)
  result = command("place", "--histogram=h.npy", "--budget=1")
  assert refused(result).endswith(sentence)


def test_an_interruption_is_one_sentence(command, monkeypatch):
  def interrupted(_):
    raise KeyboardInterrupt

  monkeypatch.setattr(place, "place_command", interrupted)
  status, out, err = command("place", "--histogram=h.npy", "--budget=1")
  assert (status, out, err) == (130, "", "sparse_prefix_jax: interrupted.\n")


def test_an_interruption_while_modules_are_loaded(monkeypatch, capsys):
  """Which takes a second, or a few on a machine that is busy."""

  class Interrupting:
    def find_spec(self, name, *_):
      if name == flags:
        signal.raise_signal(signal.SIGINT)

  flags = "sparse_prefix_jax.commands.command_flags"
  hook = sys.unraisablehook
  for loaded in (flags, "sparse_prefix_jax.__main__"):
    monkeypatch.delitem(sys.modules, loaded)
  monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
  with pytest.raises(SystemExit) as ended:
    runpy.run_module("sparse_prefix_jax", run_name="__main__", alter_sys=True)
  told = capsys.readouterr().err
  assert (ended.value.code, told) == (130, "sparse_prefix_jax: interrupted.\n")
  assert flags in sys.modules, "an import was cut short"
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  assert sys.unraisablehook is hook


def test_an_interrupted_command_leaves_at_once(monkeypatch, capsys):
  """JAX would take apart what it was tracing, and crash."""

  def left(status):
    raise SystemExit(f"left with {status}")

  def interrupted(_):
    raise KeyboardInterrupt

  monkeypatch.setattr(os, "_exit", left)
  monkeypatch.setattr(place, "place_command", interrupted)
  monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
  line = ["main", "place", "--histogram=h.npy", "--budget=1"]
  monkeypatch.setattr(sys, "argv", line)
  monkeypatch.delitem(sys.modules, "sparse_prefix_jax.__main__")
  with pytest.raises(SystemExit, match="left with 130"):
    runpy.run_module("sparse_prefix_jax", run_name="__main__")
  assert capsys.readouterr().err == "sparse_prefix_jax: interrupted.\n"


def test_an_interruption_that_a_callback_swallows_comes_again(monkeypatch):
  """The garbage collector calls JAX, often just when a signal has come."""

  def interrupted(*_):
    gc.callbacks.remove(interrupted)
    raise KeyboardInterrupt

  monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
  interruptions.hear_again()
  gc.callbacks.append(interrupted)
  with pytest.raises(KeyboardInterrupt):
    gc.collect()
    time.sleep(30)


def test_demo_gets_its_folder(command, monkeypatch):
  """The demo itself is tested with its own module."""
  module = types.ModuleType("sparse_prefix_jax.demo")
  monkeypatch.setattr(module, "run_demo", print, raising=False)
  monkeypatch.setitem(sys.modules, module.__name__, module)
  assert command("demo", "--out=some/folder") == (0, "some/folder\n", "")
  assert "demo needs --out" in refused(command("demo"))


def test_train_tells_what_it_learned(command, monkeypatch):
  given = []

  def train(out, **settings):
    given.append((out, settings))
    return {"right": [0.0] * 50 + [0.5] * 50}

  monkeypatch.setattr("sparse_prefix_jax.training.job.train", train)
  assert command("train", "--out=here", "--steps=100") == (
    0,
    "100 steps, 50.0% of the last 50 steps' answers right\nWritten: here\n",
    "",
  )
  assert command("train", "--out=here", "--steps=9", "--seed=3")[0] == 0
  assert given == [
    ("here", {"steps": 100, "seed": 0}),
    ("here", {"steps": 9, "seed": 3}),
  ]


def test_commands_and_help(command):
  assert "command must be one of demo, simulate, place" in refused(command())
  assert "got fly" in refused(command("fly"))
  assert "got place now" in refused(command("place", "now"))
  status, out, _ = command("--help")
  assert status == 0 and "simulate --requests=FILE" in out
  assert "COMMAND --help" in out and "--warmup_fraction:" not in out
  for words in (["help"], ["-h"], ["fly", "--help"]):
    assert command(*words) == (0, out, "")


def test_help_of_a_command_has_its_flags_and_no_others(command):
  status, out, _ = command("simulate", "--help")
  assert status == 0 and "simulate --requests=FILE" in out
  assert "--warmup_fraction:" in out and "--api_keys" not in out
  assert "place --histogram" not in out
  assert command("help", "simulate") == (0, out, "")
  status, out, _ = command("place", "--budget=1", "-h")
  assert status == 0 and "--histogram:" in out and "--capacity" not in out
