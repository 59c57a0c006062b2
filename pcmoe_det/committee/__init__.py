"""The parameter committee: which experts of a Mixture-of-Experts detector are in memory, and when.

PC-MoE / SwapMoE (arXiv 2308.15030). A packed model (``packed_model``) keeps its experts in a file, a
store (``store``) reads single experts from it, and a committee of them runs in slots that are kept
up to date while a video plays. Importing this package loads nothing heavy.
"""
