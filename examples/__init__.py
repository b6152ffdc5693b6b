"""Scripts that show one idea each; README.md lists them."""
