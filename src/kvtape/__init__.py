"""Record every write to a Redis or Valkey server, and bring any moment back."""
