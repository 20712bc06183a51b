"""Rows in, tensors out."""
