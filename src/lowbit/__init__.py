"""Makes trained neural networks small and fast, and proves that they still work."""
