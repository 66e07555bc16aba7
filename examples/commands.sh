omnigen2-mcp generate "a red circle" --seed 1 --output circle.png
omnigen2-mcp edit circle.png "make the circle blue" --output blue.png
omnigen2-mcp compose "the first image and the second image side by side" circle.png blue.png --output both.png
omnigen2-mcp describe both.png --question "What is in this image?"
