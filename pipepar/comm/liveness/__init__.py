"""The heartbeat between ranks, and the common end of a launcher and its ranks."""
