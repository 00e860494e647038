"""The study of orders: which order of pairs teaches a reward most with the fewest votes."""
