"""The heartbeat between ranks, and the end of ranks whose launcher has ended."""
