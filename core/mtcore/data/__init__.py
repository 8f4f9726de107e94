"""From rows to batches: reading, checking, encoding, planning, packing."""
