"""Losses and steps over explicit carries; no cache, no pools."""
