"""The gates measured on labelled and planted data."""
