"""Text of ids as they come, which never has to be taken back."""

from sparse_prefix_jax.serving.text.tokenizer import TextTokenizer

INCOMPLETE = "\ufffd"
"""What bytes that are no character decode to."""


class Detokenizer:
  """The text of ids, piece by piece.

  All pieces in a row are what the decoder makes of all ids at once, and no
  piece ends within a character. Ids are decoded together with those of the
  piece before: what a decoder strips at the start of a text, or puts between
  two ids, comes out as it would in the whole. A piece waits while its bytes may
  still become another character: where the text ends with U+FFFD, and, since a
  tokenizer with byte fallback judges a run of bytes as a whole, until such a
  run ends.

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
    return "" if piece.endswith(INCOMPLETE) else self._take(piece)

  def peek(self, token: int) -> str:
    """What an id would add, were it the next one; nothing changes.

    Args:
      token: The id.

    Returns:
      What `push` would.
    """
    before, waiting = self._before, [*self._waiting]
    text = self.push(token)
    self._before, self._waiting = before, waiting
    return text

  def finish(self) -> str:
    """Ends the text.

    Returns:
      The text of what was waiting; half a character is U+FFFD then.
    """
    return self._take(self._piece())

  def _piece(self) -> str:
    """What the waiting ids add to the text."""
    before = self._tokenizer.decode(self._before)
    return self._tokenizer.decode(self._before + self._waiting)[len(before) :]

  def _take(self, piece: str) -> str:
    """Gives out a piece; ids that have no text stay with those before."""
    if piece:
      self._before, self._waiting = self._waiting, []
    return piece
