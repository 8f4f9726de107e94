"""`python -m mtcore`, and `torchrun -m mtcore` for several processes."""

from mtcore.cli import main

main()
