"""What is known of an entry when it is placed: `Features`."""

from typing import Any, NamedTuple

from sparse_prefix_jax.kinds import check_class
from sparse_prefix_jax.placement.cues import Prompt
from sparse_prefix_jax.whole_numbers import check_at_least


class Features(NamedTuple):
  """What is known of an entry when it is placed.

  Attributes:
    length: How many tokens it has.
    overlap: How many of them equalled a stored prefix, 0 for none.
    age: Requests observed since the entry was placed that it matched; 0
      where it matched none, or none that is known.
    born: Requests observed before it was placed.
    cue: Position at which its tokens say that it will be left, 0 for none.
  """

  length: int
  overlap: int = 0
  age: int = 0
  born: int = 0
  cue: int = 0


def check_known(*, required: bool = False, **given: Any) -> None:
  """Refuses what says nothing of an entry or a prompt.

  Args:
    required: Whether None is refused too.
    **given: Features by the names of their arguments, and a `prompt`.

  Raises:
    ValueError: If one is of another class, or a number in it is no integer, or
      negative.

  >>> check_known(matched=None, entry=Features(640))
  """
  for name, value in given.items():
    if value is None and not required:
      continue
    if name == "prompt":
      check_class(name, value, Prompt)
      continue
    check_class(name, value, Features, "of `Planner.describe`")
    numbers: Any = value
    if any(type(number) is not int or number < 0 for number in numbers):
      for field, number in zip(Features._fields, numbers, strict=True):
        check_at_least(f"{name}.{field}", number, 0)
