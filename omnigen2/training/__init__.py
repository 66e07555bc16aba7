"""Training of any OmniGen2 checkpoint: the objective, the training loop and fine-tuning.

`loop` trains a `Task`, which has batches and a module that returns losses. `finetune` is one; nano's stages
(`omnigen2.nano.stages`) are others. The command is `omnigen2-mcp train CONFIG.toml`.
"""
