"""Figures of merit on embeddings."""
