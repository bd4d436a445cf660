"""The service's description of itself, made of the route table and the wire types."""
