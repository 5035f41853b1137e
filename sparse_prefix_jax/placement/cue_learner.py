"""When `adaptive` learns which tokens tell where entries will be left."""

from sparse_prefix_jax.placement.cues import Departure, Prompt, TenantCues
from sparse_prefix_jax.placement.features import Features


class CueLearner:
  """The cues of `adaptive`, which learns from a prompt when it has the time.

  What a prompt teaches is noted, and learned by `catch_up`, or else before the
  next prompt is asked about: its cue is a function of the calls, never of when
  there was time.

  >>> import numpy as np
  >>> learner = CueLearner(chunk=2)
  >>> for beginning in (4, 5):
  ...   prompt = Prompt(np.array([beginning, 7, 8, 9, 9]))
  ...   learner.observe(3, matched=Features(5), prompt=prompt)
  >>> learner.cue(Prompt(np.array([1, 2, 7, 8, 3])), 0)
  4
  """

  def __init__(self, *, chunk: int, decay: float = 0.99) -> None:
    """Knows nothing yet.

    Args:
      chunk: Tokens of a chunk, c.
      decay: What an overlap leaves of the counts of its tenant.
    """
    self._chunk, self._decay = chunk, decay
    # One attribute, so that an interruption finds the one or the other.
    self._state: tuple[TenantCues, Departure | None] = TenantCues({}), None

  def observe(self, overlap: int, *, matched: Features, prompt: Prompt) -> None:
    """Notes where a prompt left an entry; learned as `Cues.observe` says.

    Args:
      overlap: How many first ids of the prompt the entry has.
      matched: What is known of the entry, the last that went so far.
      prompt: The tokens that left it.
    """
    self.catch_up()
    if overlap >= self._chunk:
      left = Departure(prompt, overlap, matched.length, matched.overlap)
      self._state = self._state[0], left

  def catch_up(self) -> None:
    """Learns what was noted."""
    cues, noted = self._state
    if noted is not None:
      self._state = cues.observe(noted, self._decay), None

  def cue(self, prompt: Prompt, overlap: int) -> int:
    """Says where the tokens of a prompt tell that it will be left.

    Only those beyond what is known are asked: where that is left is counted.
    A prompt that has matched something follows a sure cue only.

    Args:
      prompt: Its tokens.
      overlap: How many of them equal a stored prefix.

    Returns:
      A position in tokens, 0 for none.
    """
    self.catch_up()
    sure = overlap >= self._chunk
    return self._state[0].position(prompt, after=overlap, sure=sure)

  @property
  def bytes(self) -> int:
    """Bytes of host memory that the counts take."""
    return self._state[0].bytes
