"""The alignment study: what optimising a generator for the reward does to the true utility of its pictures."""
