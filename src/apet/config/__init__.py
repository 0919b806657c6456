"""The study file: its keys, types, limits and defaults."""
