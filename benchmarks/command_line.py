"""Command lines of the benchmarks, checked before minutes of measuring.

Every benchmark checks all that it was asked inside `one_sentence`, and measures
outside of it: bad input is answered with one sentence, and an error of ours
with a traceback.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from sparse_prefix_jax import extras, preset
from sparse_prefix_jax.models import ModelConfig


@contextlib.contextmanager
def one_sentence(argv: Sequence[str]) -> Iterator[None]:
  """Ends the process with one sentence for what is wrong with the input.

  Args:
    argv: as `app.run` passes it; words that are no flags are refused.
  """
  try:
    if len(argv) > 1:
      raise ValueError(f"takes no words without --, got {' '.join(argv[1:])}")
    yield
  except (ValueError, OSError, ImportError) as error:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
      text = f"{error.strerror}: {error.filename}"
    sys.exit(f"{Path(argv[0]).stem}: {' '.join(text.split())}")


def whole_numbers(
  flag: flags.FlagHolder[Any],
  *,
  least: int = 1,
  most: int | None = None,
  multiple_of: int = 1,
  ascending: int = 0,
) -> list[int]:
  """The numbers of a list.

  Args:
    flag: made by `flags.DEFINE_list`.
    least: the smallest that is allowed.
    most: the largest, None for no bound.
    multiple_of: what each must be a multiple of.
    ascending: if positive, they must ascend, and be at least that many.

  Raises:
    ValueError: A list without a number, or one out of bounds.
  """
  numbers = []
  for text in flag.value:
    number = int(text) if text.strip().isdecimal() else -1
    if number < least or number % multiple_of or number > (most or number):
      raise ValueError(
        f"--{flag.name} has {text!r}; it takes whole numbers"
        f"{_bounds(least, most)}"
        + (f", multiples of {multiple_of}" if multiple_of > 1 else "")
      )
    numbers.append(number)
  if len(numbers) < max(ascending, 1):
    raise ValueError(f"--{flag.name} needs at least {max(ascending, 1)}")
  if ascending and numbers != sorted(set(numbers)):
    raise ValueError(f"--{flag.name} must ascend, got {flag.value}")
  return numbers


def _bounds(least: int, most: int | None) -> str:
  return f" from {least}" + ("" if most is None else f" to {most}")


def rungs(flag: flags.FlagHolder[Any]) -> dict[str, tuple[int, ...]]:
  """The field `ladder` of a model that is loaded, if a flag asks for one.

  Args:
    flag: made by `flags.DEFINE_list`, None for the model's own.

  Raises:
    ValueError: Rungs that do not ascend, or are no whole numbers.
  """
  if flag.value is None:
    return {}
  return {"ladder": tuple(whole_numbers(flag, ascending=1))}


def known(flag: flags.FlagHolder[Any], names: Collection[str]) -> None:
  """Makes sure that a list holds nothing but these names.

  Args:
    flag: made by `flags.DEFINE_list`.
    names: those that there are.

  Raises:
    ValueError: It has another.
  """
  for name in flag.value:
    if name not in names:
      raise ValueError(
        f"--{flag.name} has {name!r}; it knows {', '.join(names)}"
      )


def number(text: str, what: str) -> int | float:
  """An integer where it is one, else a fraction.

  Raises:
    ValueError: It is no number.
  """
  try:
    return int(text) if text.strip().isdecimal() else float(text)
  except ValueError:
    raise ValueError(f"{what} is no number") from None


def at_most(flag: flags.FlagHolder[Any], most: int) -> int:
  """The number of a flag whose least value absl has checked.

  Raises:
    ValueError: It is larger than `most`.
  """
  if flag.value > most:
    raise ValueError(f"--{flag.name} is {flag.value}; it must be <= {most}")
  return int(flag.value)


def model(flag: flags.FlagHolder[Any]) -> ModelConfig:
  """The configuration that a flag names.

  Raises:
    ValueError: There is no such preset.
  """
  return _preset(flag, flag.value)


def models_of(flag: flags.FlagHolder[Any]) -> dict[str, ModelConfig]:
  """The configurations that a flag names, by their names.

  Args:
    flag: made by `flags.DEFINE_list`.

  Raises:
    ValueError: It names none, one twice, or one that there is not.
  """
  if not flag.value or len(set(flag.value)) < len(flag.value):
    raise ValueError(f"--{flag.name} needs presets, each once")
  return {name: _preset(flag, name) for name in flag.value}


def _preset(flag: flags.FlagHolder[Any], name: str) -> ModelConfig:
  try:
    return preset(name)
  except ValueError as error:
    raise ValueError(f"--{flag.name}: {error}") from None


def writable(*outputs: flags.FlagHolder[Any]) -> None:
  """Makes sure that the files can be written; those that exist stay as is.

  Raises:
    OSError: One cannot be.
  """
  for path in (Path(flag.value) for flag in outputs if flag.value):
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    path.open("a").close()
    if new:
      path.unlink()


def figures(flag: flags.FlagHolder[Any]) -> Any:
  """The module of matplotlib that makes figures, where a picture is asked for.

  Raises:
    ImportError: matplotlib is not installed.
  """
  return extras.optional("matplotlib.figure", "plot") if flag.value else None


def has(*packages: str) -> bool:
  """Whether all of these can be imported.

  Args:
    *packages: Their names.
  """
  return all(importlib.util.find_spec(package) for package in packages)


def installed(*packages: str) -> None:
  """Makes sure that what an extra of ours brings is there.

  Raises:
    ImportError: It is not.
  """
  for package in packages:
    if not has(package):
      raise ImportError(
        f"{package} is not installed; pip install '.[parity]' brings it"
      )
