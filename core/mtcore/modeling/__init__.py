"""Models: loading bases, attention masks that isolate, and the head at targets only."""
