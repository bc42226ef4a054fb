"""Generator, denoiser, discriminator, autoencoder, fusion units and losses."""
