"""The command line: one module per command. Nothing outside this folder imports it."""
