"""What a run stands on, and what may befall it there: files, processes, signals, memory that ends, and the machine."""
