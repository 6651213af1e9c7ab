"""`python -m tandem` is the command `tandem`."""

from tandem.commands import main

main()
