"""One stream from its frames to the changes that it hands to the store, and the pool of all of them."""
