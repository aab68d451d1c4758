"""The main job from end to end: make a model, prepare it, serve it through vLLM, ask it."""
