"""The training of a run: the loop, the state that a checkpoint holds, when it ends."""
