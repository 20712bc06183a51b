"""Protocols: a model and rows in, figures out."""
