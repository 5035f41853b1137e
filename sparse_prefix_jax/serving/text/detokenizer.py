"""Text of ids as they come, which never has to be taken back."""

from sparse_prefix_jax.serving.text.tokenizer import TextTokenizer

INCOMPLETE = "\ufffd"
"""What bytes that are no character decode to."""

_LONG = 8
"""So many ids that wait are more than a character: it has 4 bytes at most."""


class Detokenizer:
  """The text of ids, piece by piece.

  All pieces in a row are what the decoder makes of all ids at once, and no
  piece ends within a character. Ids are decoded together with those of the
  piece before: what a decoder strips at the start of a text, or puts between
  two ids, comes out as it would in the whole. A piece waits while its bytes may
  still become another character: where the text ends with U+FFFD, and, since a
  tokenizer with byte fallback judges a run of bytes as a whole, until such a
  run ends. Of a long run that ends so only the last U+FFFD waits: whoever makes
  a model say nothing else does not have it decoded again with every id.

  Example:
    >>> from sparse_prefix_jax.workloads.recall.tokenizer import (
    ...   recall_tokenizer,
    ... )
    >>> tokenizer = TextTokenizer(recall_tokenizer())
    >>> text = Detokenizer(tokenizer)
    >>> ids = tokenizer.encode("Anna keeps Äh").tolist()
    >>> [text.push(token) for token in ids]
    ['Anna', ' keeps', ' ', '', '', '']
    >>> text.finish()
    'Äh'
  """

  def __init__(self, tokenizer: TextTokenizer) -> None:
    """Begins with no ids.

    Args:
      tokenizer: What the ids belong to.
    """
    self._tokenizer = tokenizer
    self._before: list[int] = []
    self._waiting: list[int] = []
    self._kept_back = 0  # Characters of `before` that were not given out.

  def push(self, token: int) -> str:
    """Adds an id.

    Args:
      token: The next id.

    Returns:
      The text that is certain with it, perhaps none.
    """
    if self._tokenizer.is_silent(token):
      return ""
    self._waiting.append(token)
    if self._tokenizer.is_byte(token):
      return ""
    piece = self._piece()
    if not piece.endswith(INCOMPLETE):
      return self._take(piece)
    long = len(self._waiting) >= _LONG
    return self._take(piece[:-1], kept_back=1) if long else ""

  def peek(self, token: int) -> str:
    """What an id would add, were it the next one; nothing changes.

    Args:
      token: The id.

    Returns:
      What `push` would.
    """
    held = self._before, [*self._waiting], self._kept_back
    text = self.push(token)
    self._before, self._waiting, self._kept_back = held
    return text

  def finish(self) -> str:
    """Ends the text.

    Returns:
      The text of what was waiting; half a character is U+FFFD then.
    """
    return self._take(self._piece())

  def _piece(self) -> str:
    """What the waiting ids add to the text."""
    given = len(self._tokenizer.decode(self._before)) - self._kept_back
    return self._tokenizer.decode(self._before + self._waiting)[given:]

  def _take(self, piece: str, kept_back: int = 0) -> str:
    """Gives out a piece; ids that have no text stay with those before."""
    if piece:
      self._before, self._waiting = self._waiting, []
      self._kept_back = kept_back
    return piece
