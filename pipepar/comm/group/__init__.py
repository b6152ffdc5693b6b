"""Groups of ranks: collective calls, launchers, timeouts."""
