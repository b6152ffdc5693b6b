"""The resources of one rank: device, cores, memory, measured links."""
