"""Tuned models: loading them from cells and deltas, and exporting them to PEFT, transformers or a delta."""
