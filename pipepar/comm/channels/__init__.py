"""The contract of a channel, the in-process and the MPI channel, the wire format."""
