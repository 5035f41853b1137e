import pytest

from sparse_prefix_jax.evaluation import Capacity, parse_capacity


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
    "bytes:1XB",
    "a:b",
    "sequences:" + "9" * 400,
    "bytes:" + "9" * 5000 + "GiB",
  ],
)
def test_other_texts_are_refused(text):
  with pytest.raises(
    ValueError, match="capacity must be sequences:N, states:K"
  ) as refusal:
    parse_capacity(text)
  assert len(str(refusal.value)) < 150


def test_bad_capacities_are_refused():
  with pytest.raises(ValueError, match="capacity must be of sequences, states"):
    parse_capacity("slots:4")
  with pytest.raises(ValueError, match="at least 1 of states, got 0"):
    Capacity("states", 0)
