"""Trains the byte-level BPE of the demo on its documents.

  python -m benchmarks.train_demo_bpe

The documents are the only input and training has no randomness, so that the
file that ships can be made again; a test does so and compares.
"""

import pathlib

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from sparse_prefix_jax.workloads import demo_corpus

# A document becomes 2,300 to 2,600 tokens: the length at which a prefix is
# worth keeping, and at which the demo still ends within its time.
VOCABULARY = 2048


def train(vocabulary: int) -> tokenizers.Tokenizer:
  """Trains on the texts of the demo.

  Args:
    vocabulary: tokens in all, of which 256 are the bytes.

  Returns:
    The tokenizer, which gives every text back as it was.
  """
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocabulary,
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  tokenizer.train_from_iterator(demo_corpus.training_texts(), trainer)
  return tokenizer


def main() -> None:
  """Writes the file that ships and prints how long the documents become."""
  tokenizer = train(VOCABULARY)
  folder = pathlib.Path(demo_corpus.__file__).parent / "demo_documents"
  tokenizer.save(str(folder / demo_corpus.TOKENIZER_FILE), pretty=False)
  for document in demo_corpus.load_demo_corpus():
    text = demo_corpus.document_text(document)
    tokens = len(tokenizer.encode(text).ids)
    print(f"{tokens:6d} tokens, {len(text.split()):5d} words: {document.title}")


if __name__ == "__main__":
  main()
