"""Safe CLIPs at work in models that write images or captions."""
