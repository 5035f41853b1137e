import pathlib
import re

import numpy as np
import pytest

from sparse_prefix_jax.cache.index import Budget
from sparse_prefix_jax.cache.index.eviction.lru import Lru
from sparse_prefix_jax.cache.request import Request
from sparse_prefix_jax.cache.store import PrefixStore
from sparse_prefix_jax.placement import (
  PLACEMENTS,
  PlacementPolicy,
  Planner,
  register_placement,
  unregister_placement,
)

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "how-to" / "own_policy.md"


class Fixed:
  """The same positions for everybody."""

  def __init__(self, positions):
    self.wished, self.seen = positions, []

  def observe(self, length, overlap):
    self.seen.append((length, overlap))

  def positions(self, length, overlap):
    return self.wished


@pytest.fixture
def registered():
  """Registers a placement for the length of a test."""
  made = []

  def register(make, **fields):
    register_placement(
      "mine", lambda b: made.append(make(b)) or made[-1], **fields
    )
    return made

  yield register
  unregister_placement("mine")
  assert "mine" not in PLACEMENTS


def test_a_rule_of_ones_own_is_asked_and_told(registered):
  made = registered(lambda budget: Fixed([budget, 200]), budget="a position")
  planner = Planner(PlacementPolicy("mine", 70), depths=16, serving=True)
  features = planner.describe(300, 10)
  planner.observe(10, entry=features)
  assert planner.positions(300, features) == (64, 192)
  assert made[0].seen == [(300, 10)]
  with pytest.raises(ValueError, match="placement mine needs a budget: a pos"):
    PlacementPolicy("mine")


@pytest.mark.parametrize("wrong", [[-1], [301]])
def test_positions_out_of_the_prompt_are_refused(registered, wrong):
  registered(lambda budget: Fixed(wrong))
  planner = Planner(PlacementPolicy("mine"), depths=16)
  with pytest.raises(ValueError, match="positions must be"):
    planner.positions(300)


def test_what_is_no_rule_is_refused(registered):
  registered(lambda budget: object())
  with pytest.raises(ValueError, match="placement mine must make a Placement"):
    Planner(PlacementPolicy("mine"), depths=16)


@pytest.mark.parametrize("name", ["last", "", "a:b"])
def test_a_name_must_be_new(name):
  with pytest.raises(ValueError, match="`unregister_placement` takes a name"):
    register_placement(name, Fixed)


def test_a_policy_of_ones_own_takes_thirty_lines():
  """The examples of all pages run among the tests of the project."""
  blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
  assert len(blocks) == 3 and len(blocks[0].splitlines()) <= 35


def proposing(depths):
  """A store whose rule of eviction admits some depths."""

  class Own(Lru):
    def proposes(self, match, blocks):
      return depths

  return PrefixStore(
    Budget(10_000, 100, 10),
    Planner(PlacementPolicy("last"), depths=16, serving=True),
    chunk=64,
    eviction=Own,
  )


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("depths", [[4], [-1], [0], [True], ["1"], None])
def test_depths_beyond_a_prompt_are_refused(depths):
  """A state there would be one that nobody has written."""
  store = proposing(depths)
  with pytest.raises(ValueError, match="eviction proposes"):
    store.open([Request(200, ("x", "y", "z"), b"")])
  store.audit()
  assert not store.running


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("depths", [np.arange(1, 3), iter([1, 2])])
def test_depths_are_whatever_gives_integers(depths):
  store = proposing(depths)
  (running,) = store.open([Request(200, ("x", "y", "z"), b"")])
  assert running.kept == (64, 128, 192)


def test_a_rule_that_names_no_state_is_refused():
  class Silent(Lru):
    def victim(self, short):
      return None

  store = PrefixStore(
    Budget(10_000, 100, 10, slots=3),
    Planner(PlacementPolicy("last"), depths=16, serving=True),
    chunk=64,
    eviction=Silent,
  )
  for name in ("a", "b"):
    request = Request(200, (name, "y", "z"), b"")
    if name == "b":
      with pytest.raises(ValueError, match="victim named no state"):
        store.open([request])
      break
    (running,) = store.open([request])
    store.commit(running, store.next_segment(running))
    store.close(running)
  store.audit()


@pytest.mark.parametrize("make", [None, 5, "foo"])
def test_what_makes_no_placement_is_refused(make, unchecked_types):
  with pytest.raises(ValueError, match="make must be callable"):
    register_placement("mine", make)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("positions", [None, 5, ["a"], [None]])
def test_what_is_no_positions_is_refused_in_one_sentence(registered, positions):
  registered(lambda budget: Fixed(positions))
  planner = Planner(PlacementPolicy("mine"), depths=16, serving=True)
  with pytest.raises(ValueError, match="positions must be an"):
    planner.positions(300)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("make", [lambda budget: Fixed, lambda: Fixed([])])
def test_what_makes_no_rule_is_refused(make):
  register_placement("mine", make)
  try:
    with pytest.raises(ValueError, match="placement mine must"):
      Planner(PlacementPolicy("mine"), depths=16)
  finally:
    unregister_placement("mine")
  for name in ("mine", "last", None):
    with pytest.raises(ValueError, match="one that was registered"):
      unregister_placement(name)
