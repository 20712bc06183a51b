"""The bundled demo: sprites, scenes, dataset and base model, and how each was made."""
