"""`python -m minilm_cli`, and what `torchrun -m minilm_cli` runs."""

from minilm_cli.cli.app import main

if __name__ == "__main__":
    main()
