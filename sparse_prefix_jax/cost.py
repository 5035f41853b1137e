"""Placeholder until written below."""
