"""The command line, one short file per subcommand."""
