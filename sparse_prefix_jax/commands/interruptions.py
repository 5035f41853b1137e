"""Ctrl-C in a command: heard whenever it comes, and told in one line.

Python raises KeyboardInterrupt wherever its main thread happens to be. Inside
of an import of NumPy or JAX that ends in another error, or in a crash; inside
of a callback of the garbage collector, which JAX has, it is printed and
forgotten, and the command goes on.
"""

import _thread
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

_SOON = 0.05  # seconds


@contextlib.contextmanager
def after_imports() -> Iterator[None]:
  """Lets imports end before a Ctrl-C is heard.

  Raises:
    KeyboardInterrupt: One came meanwhile.
  """
  noted: list[int] = []
  before = signal.getsignal(signal.SIGINT)
  alone = threading.current_thread() is threading.main_thread()
  if not alone or before is not signal.default_int_handler:
    yield  # Somebody else hears it, or nobody.
    return
  signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)
  if noted:
    raise KeyboardInterrupt


def hear_again() -> None:
  """From here on a Ctrl-C that could not be raised where it came comes again.

  So nothing is printed of one that comes while the interpreter ends, either.
  """
  sys.unraisablehook = _again


def _again(lost: Any) -> None:
  """Repeats a KeyboardInterrupt soon; of all else Python tells as ever."""
  if lost.exc_type is not KeyboardInterrupt:
    sys.__unraisablehook__(lost)
    return
  soon = threading.Timer(_SOON, _signal_again)
  soon.daemon = True
  with contextlib.suppress(RuntimeError):  # The interpreter ends.
    soon.start()


def _signal_again() -> None:
  """Sends a signal that wakes the main thread, whatever it waits for."""
  main = threading.main_thread().ident
  if main is not None and hasattr(signal, "pthread_kill"):
    signal.pthread_kill(main, signal.SIGINT)
  else:  # of Windows, which has none
    _thread.interrupt_main()
