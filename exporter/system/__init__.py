"""What the operating system gives: folders with locks, exchanges, signals, the machine."""
