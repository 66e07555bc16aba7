curl -s http://127.0.0.1:8765/v1/models
curl -s http://127.0.0.1:8765/v1/tools/generate_image -H "Content-Type: application/json" -d '{"prompt": "a red circle", "seed": 1}'
curl -s http://127.0.0.1:8765/v1/images -F file=@circle.png -F label=circle
curl -s http://127.0.0.1:8765/v1/images/generations -H "Content-Type: application/json" -d '{"prompt": "a red circle", "size": "64x64"}' -o circle.json
curl -s http://127.0.0.1:8765/v1/images/edits -F image=@circle.png -F prompt="make the circle blue" -o blue.json
