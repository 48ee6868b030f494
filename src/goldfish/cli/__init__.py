"""The command lines: the only modules that know Hydra or argparse."""
