"""Embeddings of captions and images by a CLIP, for training, evaluation and generation."""
