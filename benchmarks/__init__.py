"""Benchmarks: real models on real data, measured beside float and the peers in one run. See README.md."""
