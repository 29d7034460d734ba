"""The published instruments of head-avatar papers: networks, and how each wants its input.

deep3d     coefficients of a face, for AED and APD
inception  features for FID, by the three front ends in use
emotion    features of an emotion classifier, for AED_f
syncnet    lips against sound

Face recognition by insightface is `model.judges.identity.IdentityNet` at the sizes in `arcface`. Each package
publishes weights of its own; `psi4d import` takes them. May import layers, judges and sizes.
"""
