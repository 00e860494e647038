"""Building and measuring the small world's networks: autoencoder, text encoders, generator and rewards."""
