"""Speed, side by side with a peer in one run on one machine."""
