"""What the structures of models have in common."""
import numpy as np
def dictionary():
    return np.zeros(0, np.uint8)
