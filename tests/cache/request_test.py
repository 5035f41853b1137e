"""What two prompts share, in chunks that the second could resume after."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_prefix_jax.cache.request import (
  Limits,
  Request,
  check_request,
  check_requests,
)

CHUNK = 4


def request(ids, **fields):
  return Request.of_tokens(np.array(ids, np.int32), CHUNK, **fields)


@pytest.mark.parametrize(
  ("ours", "theirs", "shared"),
  [
    (range(12), range(12), 2),  # One token has to be left to compute.
    (range(13), range(12), 3),
    (range(13), [*range(11), 99], 2),
    (range(13), [99, *range(1, 13)], 0),
    (range(13), range(5), 1),
    (range(4), range(4), 0),
    (range(400), [*range(399), 7], 99),
    ([7], [7], 0),
  ],
)
def test_whole_chunks_before_the_last_token_are_shared(ours, theirs, shared):
  assert request(ours).shared_chunks(request(theirs), CHUNK) == shared


def test_tenants_share_nothing():
  ours, theirs = request(range(12)), request(range(12), salt=b"theirs")
  assert ours.shared_chunks(theirs, CHUNK) == 0


@pytest.mark.parametrize("salt", ["åsa", "\ud800"])
def test_a_salt_of_text_is_its_utf8(salt):
  limits = Limits(vocab_size=9, max_length=9, chunk=4)
  (text,) = check_requests(limits, [[1]], salt=salt)
  encoded = salt.encode(errors="surrogatepass")
  (same,) = check_requests(limits, [[1]], salt=encoded)
  assert text.salt == same.salt == encoded


@pytest.mark.parametrize("far", [9, -1, 2**31, 2**63, 10**30])
def test_ids_far_outside_of_the_vocabulary_are_named(far):
  """NumPy makes floats or objects of them."""
  limits = Limits(vocab_size=9, max_length=9, chunk=4)
  sentence = rf"^prompt holds id {far}; the vocabulary is 0 to 8\.$"
  with pytest.raises(ValueError, match=sentence):
    check_request(limits, [1, far])


def test_what_is_wrong_is_called_as_it_was_given():
  """One prompt is `prompt`; one of several has its number."""
  limits = Limits(vocab_size=9, max_length=2, chunk=4)
  with pytest.raises(ValueError, match=r"^prompt has 3 tokens"):
    check_request(limits, [1, 2, 3])
  with pytest.raises(ValueError, match=r"^anchors holds 7;"):
    check_request(limits, [1], [7])
  with pytest.raises(ValueError, match=r"^prompts\[1\] has 3 tokens"):
    check_requests(limits, [[1], [1, 2, 3]])
  with pytest.raises(ValueError, match=r"^anchors\[1\] holds 7;"):
    check_requests(limits, [[1], [1]], [[], [7]])


def test_a_long_salt_is_measured_in_bytes():
  limits = Limits(vocab_size=9, max_length=9, chunk=4)
  check_requests(limits, [[1]], salt="å" * 512)
  with pytest.raises(ValueError, match="salt has 1026 bytes"):
    check_requests(limits, [[1]], salt="å" * 513)


def without_values(kind):
  if kind == "shape":
    return jax.ShapeDtypeStruct((2,), jnp.int32)
  if kind == "length":
    return type("Lengthy", (), {"__len__": lambda _: 1})()
  deleted = jnp.arange(2) + 0
  deleted.delete()
  return deleted


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("kind", ["shape", "length", "deleted"])
def test_what_has_a_length_and_no_values_is_refused(kind):
  limits = Limits(vocab_size=9, max_length=9, chunk=4)
  given, prompts = without_values(kind), [[1, 2]]
  told = r"^{} has no values \(\w+\); it must be a sequence"
  for name in ("anchors", "capture"):
    with pytest.raises(ValueError, match=told.format(name + r"\[0\]")):
      check_requests(limits, prompts, **{name: [given]})
    with pytest.raises(ValueError, match=told.format(name)):
      check_requests(limits, prompts, **{name: given})
  with pytest.raises(ValueError, match=told.format("prompts")):
    check_requests(limits, given)
  with pytest.raises(ValueError, match=r"^prompts\[0\] has (no|shape)"):
    check_requests(limits, [given])
