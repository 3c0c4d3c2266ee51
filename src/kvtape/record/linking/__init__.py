"""The link to the primary: keeping one, who may look at us, and why it broke."""
