"""Our own forward of a LLaMA: a static cache, fused projections, and on CUDA one captured graph per decode step."""
