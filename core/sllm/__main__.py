"""`python -m sllm` is the `sllm` command."""

from sllm.cli import main

if __name__ == "__main__":
    main()
