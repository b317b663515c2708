"""The command line: arguments in, one task run."""
