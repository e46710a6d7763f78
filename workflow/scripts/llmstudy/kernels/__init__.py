"""Linear layers in 8 bits and Triton kernels: of tensors alone, without models or studies. See README.md."""
