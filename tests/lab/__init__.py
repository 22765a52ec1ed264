"""The lab: a small internet on one machine, made of network namespaces. `Lab` in `tests.lab.lab` is the way in."""
