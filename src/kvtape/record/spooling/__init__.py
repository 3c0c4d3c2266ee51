"""From received bytes to durable ones, and where to go on after a crash."""
