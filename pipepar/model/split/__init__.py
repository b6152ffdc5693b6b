"""Legal cuts, the tensors that cross, costs, operations to time, the module of one stage."""
