"""Input noise: a policy says what may happen, a plan draws what does, ops does it to the pixels."""
