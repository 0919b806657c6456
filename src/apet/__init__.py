"""Reproducible study of how model scaling changes parameter-efficient tuning."""
