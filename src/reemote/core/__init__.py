"""What an operation, a response and an inventory are, and the engine that drives them."""
