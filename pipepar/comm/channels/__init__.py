"""The contract of a channel, the in-process channel, the MPI channel, and the wire format."""
