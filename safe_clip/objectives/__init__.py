"""Embeddings in, named loss terms out; one method a file."""
