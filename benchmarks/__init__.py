"""Measurements run by hand, beside peers; never in CI."""
