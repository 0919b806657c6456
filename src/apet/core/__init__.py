"""Foundations that know nothing of models or studies: hashes, atomic writes, records, YAML, progress."""
