"""What a command says: to whom reads it, and of what went wrong."""

import os
import re
import sys
from typing import Any


def say(text: str, *, stream: Any = None, end: str = "\n") -> None:
  """Prints a line at once, whether or not somebody still reads.

  `python -m sparse_prefix_jax --help | head -1` closes the pipe early, which is
  no fault of anybody.

  Args:
    text: what to print.
    stream: where to print it, stdout by default.
    end: what follows it.

  Raises:
    OSError: the line cannot be written, because the disk is full, say.
  """
  stream = stream or sys.stdout
  try:
    print(text, file=stream, flush=True, end=end)
  except OSError as error:
    hush(stream)
    if not isinstance(error, BrokenPipeError):
      raise


def hush(stream: Any) -> None:
  """Lets a stream lead nowhere from here on.

  What could not be written stays in its buffer, and the interpreter would try
  again, and fail, when it ends.

  Args:
    stream: one that has a file descriptor, such as stdout.
  """
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, stream.fileno())
  os.close(nowhere)


def tell(sentence: str) -> None:
  """Prints a sentence of this program to stderr.

  Args:
    sentence: what to tell, without the name of the program.
  """
  if sys.stderr is not None:  # closed by the shell, as by 2>&-
    say(f"sparse_prefix_jax: {sentence}", stream=sys.stderr)


def sentence_of(error: Exception) -> str:
  """What went wrong, on one line.

  Args:
    error: what a command raised.

  Returns:
    A sentence with the name of the file, where the system knows it.

  >>> sentence_of(FileNotFoundError(2, "No such file", "trace.jsonl"))
  'No such file: trace.jsonl'
  """
  text = str(error) or type(error).__name__
  if isinstance(error, OSError) and error.strerror:
    name = "" if error.filename is None else f": {error.filename}"
    text = error.strerror + name
  elif isinstance(error, MemoryError | OverflowError | RecursionError):
    text = f"the input is too large: {text}"
  # Nobody reads a number of thousands of digits.
  short = re.sub(r"\d{40,}", lambda m: f"{m[0][:10]}... (long)", text)
  return " ".join(short.split())
