"""Networks of the small world: autoencoder, text encoders, generator and rewards, how they are built and measured."""
