"""The recall task: sentences that state facts, then questions about them."""
