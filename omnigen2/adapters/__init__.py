"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685): as files, in every form that goes round, at work."""
