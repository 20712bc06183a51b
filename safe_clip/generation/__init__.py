"""Safe CLIPs at work in models that write images or captions."""

from .swap import safe_image_to_text, safe_text_to_image

__all__ = ["safe_image_to_text", "safe_text_to_image"]
