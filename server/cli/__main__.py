"""`python -m server.cli`: the console script where none is installed, as on several GPUs."""

from server.cli.main import main

main()
