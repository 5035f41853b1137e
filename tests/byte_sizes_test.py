import decimal
import fractions

import numpy as np
import pytest

from sparse_prefix_jax.byte_sizes import parse_bytes

pytestmark = pytest.mark.usefixtures("unchecked_types")


@pytest.mark.parametrize(
  "size, amount",
  [
    ("17", 17),
    ("2B", 2),
    ("3KB", 3000),
    ("1.5MB", 1_500_000),
    ("0.5KiB", 512),
    ("4GiB", 4 * 2**30),
    (" 4 GiB ", 4 * 2**30),
    ("1TiB", 2**40),
    ("0.3GiB", 322_122_547),  # rounded down, without a float between
    (1, 1),
    (2**63 - 1, 2**63 - 1),
    (np.int64(64), 64),
    (np.uint8(64), 64),
    (8e9, 8_000_000_000),
    (np.float32(2.0), 2),
  ],
)
def test_reads_texts_and_whole_numbers(size, amount):
  read = parse_bytes(size)
  assert read == amount and type(read) is int


@pytest.mark.parametrize(
  "size",
  [
    "",
    "GiB",
    "4 gib",
    "4Gib",
    "4GiBs",
    "4XB",
    "-4GiB",
    "+4GiB",
    "1e9",
    "0x10",
    "nan",
    "inf",
    ".5GiB",
    "5.GiB",
    "1,5GiB",
    "4\nGiB",
    "\u0664GiB",
    "0",
    "0GiB",
    "0.1B",
    "9" * 5000,
    "9" * 400 + "GiB",
    "99999999999TiB",
    b"4GiB",
    bytearray(b"4"),
    True,
    np.bool_(True),
    None,
    0,
    -1,
    2**63,
    0.0,
    -4.0,
    1.5,
    1e300,
    float("nan"),
    np.float64("inf"),
    float("inf"),
    -float("inf"),
    np.float64("nan"),
    4 + 0j,
    fractions.Fraction(4),
    decimal.Decimal(4),
    np.array(4),
    np.array([4]),
    [4],
    ("4GiB",),
    {"bytes": 4},
    object(),
  ],
)
def test_everything_else_is_one_sentence(size):
  with pytest.raises(ValueError, match=r"^size must be ") as refusal:
    parse_bytes(size)
  text = str(refusal.value)
  assert "\n" not in text and len(text) < 200
  assert "'4GiB'" in text and ", got " in text


def test_the_sentence_names_the_argument():
  with pytest.raises(ValueError, match=r"^capacity must be .* got '4 apples'$"):
    parse_bytes("4 apples", name="capacity")


def test_integers_that_python_does_not_print_are_one_sentence():
  with pytest.raises(ValueError, match="got an integer of thousands of digits"):
    parse_bytes(10**5000)
