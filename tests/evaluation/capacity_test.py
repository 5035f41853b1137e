import pytest

from sparse_prefix_jax.evaluation import Capacity, parse_capacity

pytestmark = pytest.mark.usefixtures("unchecked_types")


@pytest.mark.parametrize(
  "text, kind, amount",
  [
    ("sequences:20", "sequences", 20),
    ("states:1024", "states", 1024),
    ("bytes:17", "bytes", 17),
    ("bytes:4GiB", "bytes", 4 * 2**30),
    ("bytes:1.5MB", "bytes", 1_500_000),
    ("bytes:2B", "bytes", 2),
    ("states:123456789012345679", "states", 123456789012345679),
  ],
)
def test_parses(text, kind, amount):
  assert parse_capacity(text) == Capacity(kind, amount)


def test_text_of_a_capacity_parses_again():
  capacity = Capacity("bytes", 12345)
  assert parse_capacity(str(capacity)) == capacity


@pytest.mark.parametrize(
  "text",
  [
    "",
    "20",
    "sequences",
    "sequences:1.5",
    "states:2GiB",
    "a:b",
    "slots:4",
    "states:\u0664",
    "sequences:" + "9" * 400,
    b"states:4",
    4,
    None,
  ],
)
def test_other_texts_are_refused(text):
  with pytest.raises(
    ValueError, match="capacity must be sequences:N, states:K"
  ) as refusal:
    parse_capacity(text)
  assert len(str(refusal.value)) < 150


@pytest.mark.parametrize(
  "size", ["", "1XB", "0", "-1", "nan", "9" * 5000 + "GiB"]
)
def test_sizes_that_are_none_are_refused(size):
  with pytest.raises(
    ValueError, match="capacity in bytes must be a whole number of bytes"
  ) as refusal:
    parse_capacity(f"bytes:{size}")
  assert len(str(refusal.value)) < 200


@pytest.mark.parametrize(
  "amount", [0, -1, True, 1.5, 4.0, float("nan"), "4", None]
)
def test_amounts_that_are_no_integers_from_1_are_refused(amount):
  with pytest.raises(ValueError, match="an integer of at least 1 of states"):
    Capacity("states", amount)


def test_unknown_kinds_are_refused():
  with pytest.raises(ValueError, match="capacity must be of sequences, states"):
    Capacity("slots", 4)
