"""Networks of many families, with random weights: does lowbit bring them in, and does W8A8 still agree with them?"""
