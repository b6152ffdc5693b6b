"""CUDA streams and events, NCCL, and copies through pinned memory."""
