"""How fast, how much, how many: one file for each question, on the lab. `bench.__main__` is the way in."""
