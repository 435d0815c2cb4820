"""Ask: parse a request, make one call of the service, answer with JSON or a stream."""
