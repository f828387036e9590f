"""What the adapters for services on another machine share: HTTP with bounds, and pictures out of answers."""
