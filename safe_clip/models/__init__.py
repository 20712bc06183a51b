"""CLIPs: loaded, checked, prepared for training, merged, exported."""
