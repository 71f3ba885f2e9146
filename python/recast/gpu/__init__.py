"""The memory a model takes on a GPU, predicted, and the GPU that is there.

`predict` models PyTorch's caching allocator, `settings` reads that allocator's options from the
environment, and `device` asks the driver what is free.
"""
