"""Stop strings: exact, wherever a text is cut."""

import hypothesis
import pytest
from hypothesis import strategies as st

from sparse_prefix_jax.serving.text.stop_strings import (
  StopScanner,
  checked_stops,
)


def by_character(text, stops):
  """The text before the stop that is complete first, of equal ones the longest.

  Returns:
    The text, and the stop string or None.
  """
  for end in range(1, len(text) + 1):
    found = [stop for stop in stops if text[:end].endswith(stop)]
    if found:
      longest = max(found, key=len)
      return text[: end - len(longest)], longest
  return text, None


words = st.text("ab\n", min_size=1, max_size=4)


@hypothesis.given(
  st.lists(st.text("ab\n", max_size=5), max_size=6), words, words
)
@hypothesis.settings(max_examples=300)
def test_the_text_before_a_stop_is_exact(pieces, one, two):
  scanner = StopScanner([one, two])
  given = "".join(map(scanner.push, pieces)) + scanner.finish()
  expected, stop = by_character("".join(pieces), [one, two])
  assert given == expected
  assert scanner.stopped == stop


@hypothesis.given(st.lists(st.text("ab\n", max_size=5), max_size=6), words)
def test_what_was_given_out_is_never_too_much(pieces, stop):
  """Each moment what is out is the start of every way that it could go on."""
  scanner, out, text = StopScanner([stop]), "", ""
  for piece in pieces:
    out, text = out + scanner.push(piece), text + piece
    for more in ("", stop, *(stop[i:] for i in range(1, len(stop)))):
      assert by_character(text + more, [stop])[0].startswith(out)


def test_nothing_waits_without_a_reason():
  scanner = StopScanner(["###"])
  assert scanner.push("a # b") == "a # b"
  assert [scanner.push("#"), scanner.push("#"), scanner.push("c")] == [
    "",
    "",
    "##c",
  ]
  assert StopScanner([]).push("anything") == "anything"


def test_nothing_follows_a_stop():
  scanner = StopScanner(["."])
  assert scanner.push("a.b") == "a"
  assert (scanner.push("c"), scanner.finish()) == ("", "")


@pytest.mark.parametrize(
  "stop, sentence",
  [
    (5, "stop is 5; it must be a string"),
    (0, "stop is 0; it must be a string"),
    (b"x", "stop is b'x'"),
    ({"a": 1}, "it must be a string, or a list"),
    ([1], "stop holds 1"),
    ([""], "stop holds ''"),
    ("", "stop holds ''"),
    (["a"] * 17, "stop has 17 strings; it may have 16"),
  ],
)
def test_what_is_no_stop_is_refused(stop, sentence):
  with pytest.raises(ValueError) as caught:
    checked_stops(stop)
  assert sentence in str(caught.value)


def test_stops_may_be_one_or_several():
  assert checked_stops(None) == checked_stops([]) == ()
  assert checked_stops("ab") == ("ab",)
  assert checked_stops(["a", "b"]) == ("a", "b")
