"""`minigpt bench`: speed beside a peer, measured in turn on the same machine in the same minutes."""
