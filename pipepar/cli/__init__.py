"""The command-line door, one short file a verb."""
