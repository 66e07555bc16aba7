"""The model without a server: load it, make a picture, edit it, ask about it."""

import omnigen2

model = omnigen2.load("nano")
(circle,) = model.generate("a red circle", seed=1)
(edited,) = model.generate("make the circle blue", images=[circle], seed=1)
edited.save("blue.png")
print(model.describe([edited], "What is in this image?"))
