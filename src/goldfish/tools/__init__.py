"""Files, terminal, threads and optional packages: what every other room uses and no study changes."""
