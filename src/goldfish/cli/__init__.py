"""The command lines. Only these modules (and the Hydra plugins) import Hydra or argparse."""
