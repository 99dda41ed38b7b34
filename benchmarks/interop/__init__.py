"""Which operators arrive from which framework, and which engine computes them in integers: the table of the README."""
