"""Pretraining of the ladder: tokenizer, packed corpus, losses, optimizer and loop."""
