"""Text in and out: tokenizer, chat template, text of ids, stop strings."""
