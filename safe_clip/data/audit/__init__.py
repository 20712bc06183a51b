"""What data hold, looked at before training on them."""
