"""From the network of a run to one that works elsewhere: checked files, eight bits, its classes, what it costs."""
