"""Pretrained language models: families, loading, and the scale ladder that is pretrained here."""
