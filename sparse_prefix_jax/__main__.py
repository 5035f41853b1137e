"""Command line: `python -m sparse_prefix_jax demo | simulate | place | ...`.

What a command does stands in the file of its name in `commands/`. Bad input is
answered with one sentence on stderr and exit status 2, never with a traceback.
`--help` lists the commands, `COMMAND --help` the flags of one.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from sparse_prefix_jax.commands.interruptions import after_imports, hear_again

# What a shell reports of a program that Ctrl-C has ended.
_INTERRUPTED = 130

try:
  with after_imports():
    from absl import flags

    from sparse_prefix_jax.commands.command_flags import help_text, parse
    from sparse_prefix_jax.commands.printing import hush, say, sentence_of, tell
    from sparse_prefix_jax.contract import ContractError
except KeyboardInterrupt:  # It takes a second, or a few.
  sys.stderr.write("sparse_prefix_jax: interrupted.\n")
  sys.exit(_INTERRUPTED)

# What a shell reports of a program that a closed pipe has ended.
_CLOSED_PIPE = 141

# Any other error is a bug of ours, which a traceback helps to find.
_BAD_INPUT = (
  ValueError,
  OSError,
  flags.Error,
  OverflowError,
  MemoryError,
  RecursionError,
)


def _dispatch(argv: Sequence[str]) -> None:
  """Runs the command of `argv`, or prints the help."""
  helps = [word for word in argv[1:] if word in ("--help", "-h", "-help")]
  if helps or list(argv[1:2]) == ["help"]:
    say(help_text(argv[1:]))
    return
  command, values = parse(argv)
  module = importlib.import_module(f"sparse_prefix_jax.commands.{command}")
  getattr(module, f"{command}_command")(values)


def run(argv: Sequence[str]) -> int:
  """Runs one command.

  Args:
    argv: program name, command and flags.

  Returns:
    Exit status: 0, also where nobody reads to its end what is printed; 2 after
    bad input or an unwritable output, 1 if the demo finds a bit that differs,
    both told in one sentence on stderr; 130 if it was interrupted; 141, as of a
    program that a closed pipe ends, if the work was not done when its progress
    could not be shown.
  """
  try:
    _dispatch(argv)
  except BrokenPipeError:
    hush(sys.stderr)
    return _CLOSED_PIPE
  except KeyboardInterrupt:
    tell("interrupted.")
    return _INTERRUPTED
  except _BAD_INPUT as error:
    tell(sentence_of(error))
    return 2
  except ContractError as error:
    tell(sentence_of(error))
    return 1
  return 0


def _leave(status: int) -> NoReturn:
  """Ends the process: after an interruption at once.

  What JAX was tracing then is half built, and taking it apart ends in a crash
  now and then (4 of 57 that were interrupted at a random moment).
  """
  if status == _INTERRUPTED:
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(OSError, AttributeError):  # closed, or none
        stream.flush()
    os._exit(status)
  sys.exit(status)


if __name__ == "__main__":
  hear_again()
  _leave(run(sys.argv))
