"""The command line: thin, one file per command; the only layer that prints."""
