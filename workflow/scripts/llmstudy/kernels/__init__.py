"""8-bit linears of our own: quantisation, its reference in plain PyTorch, and the kernels that multiply it."""
