"""The private interfaces of torch and transformers that pipepar uses, one module each."""
