"""Data, float networks and their training for the benchmarks of `lowbit.prune`, `lowbit.qat` and `.lbz` files."""
