"""The trainer: stages that make a model from nothing, and fine-tuning of any checkpoint.

`loop` moves weights and knows no stage. A stage (`autoencoder`, `understanding`, `seeing`, `generation`,
`finetune`) knows its data and its loss and no loop. `omnigen2-mcp train CONFIG.toml` is the way in.
"""
