"""The programs, one file a command, each from its frozen configuration to its result, top to bottom."""
