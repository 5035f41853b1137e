"""Small tokenizers of every kind that detokenising has to do with."""

import functools

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from sparse_prefix_jax.serving.text.tokenizer import TextTokenizer
from sparse_prefix_jax.workloads.demo_corpus import load_demo_tokenizer
from sparse_prefix_jax.workloads.recall.tokenizer import recall_tokenizer

BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}


def _pieces():
  """As Llama's: pieces with the mark of a space, bytes for what is unknown."""
  words = ["▁", "▁a", "a", "b", "▁the", "é", "▁▁", "\ufffd", "▁日", "本", "."]
  vocab = BYTES | {word: 256 + i for i, word in enumerate(words)}
  merges = [("▁", "a"), ("▁", "▁")]
  made = tokenizers.Tokenizer(
    models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True)
  )
  made.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
  made.decoder = decoders.Sequence(
    [
      decoders.Replace("▁", " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(" ", 1, 0),
    ]
  )
  return made


def _byte_level():
  """The demo's, with an added and a special token."""
  made = tokenizers.Tokenizer.from_str(load_demo_tokenizer().to_str())
  made.add_tokens(["<tool>"])
  made.add_special_tokens(["<|end|>"])
  return made


def _word_pieces():
  """Words whose spaces the decoder puts in."""
  words = ["[UNK]", "a", "the", "##b", "##é", ".", "'s", "本"]
  vocab = {word: i for i, word in enumerate(words)}
  made = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  made.decoder = decoders.WordPiece()
  return made


def _metaspace():
  """Pieces whose first space goes."""
  made = _pieces()
  made.decoder = decoders.Metaspace()
  return made


KINDS = {
  "byte_level": _byte_level,
  "byte_fallback": _pieces,
  "words": recall_tokenizer,
  "word_pieces": _word_pieces,
  "metaspace": _metaspace,
}


@functools.cache
def text_tokenizer(kind):
  """The tokenizer of a kind, as an engine has it."""
  return TextTokenizer(KINDS[kind]())
