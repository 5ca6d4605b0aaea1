"""How well a router knows its domains' prompts, and that others are none: without generating."""
