"""The inference wing: label tries, scoring, generation."""
