"""Communication between ranks over MPI and NCCL; does not know models."""
