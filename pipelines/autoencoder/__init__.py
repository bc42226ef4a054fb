"""Autoencoders of latent diffusion: fetched or trained, and checked on scans."""
