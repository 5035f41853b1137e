"""`demo`: strategies compared on requests that share documents."""

import contextlib
import importlib
import io

from absl import flags

from .printing import say


def demo_command(values: flags.FlagValues) -> None:
  """Runs the demo, which needs the whole library and so is imported late.

  It prints its table before it compares the bits: a reader who has gone must
  not keep it from that, so what it prints is said afterwards.

  Args:
    values: the flags of the command.
  """
  printed = io.StringIO()
  try:
    with contextlib.redirect_stdout(printed):
      importlib.import_module("sparse_prefix_jax.demo").run_demo(values.out)
  finally:
    if text := printed.getvalue().rstrip("\n"):
      say(text)
