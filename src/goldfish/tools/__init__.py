"""Read files, print to the terminal, set threads, check optional packages: helpers that every other folder uses."""
