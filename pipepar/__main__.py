"""``python -m pipepar`` runs the command `pipepar`."""

from pipepar.cli.app import main

if __name__ == "__main__":
    main()
