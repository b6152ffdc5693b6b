"""pipepar: pipeline-parallel inference for PyTorch models on HPC clusters."""
