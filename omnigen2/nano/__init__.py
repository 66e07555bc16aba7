"""nano: the toy world it knows, the stages that train it, and its weights. Inference imports none of it."""
