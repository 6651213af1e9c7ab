"""Run the `tandem` command by `python -m tandem`."""

from tandem.commands import main

main()
