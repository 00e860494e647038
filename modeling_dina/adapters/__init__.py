"""DiNa as the reward of other trainers. None of them is a dependency; each module says how it is plugged in."""
