"""Protocols: embeddings in, figures out, and what shows them."""

TASKS = ("retrieval", "redirection", "unsafe_gallery", "zero_shot", "geometry", "robustness")
