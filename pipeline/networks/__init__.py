"""Loading of networks, trained here or published.

judges.Judges            the frozen networks that judge images
published.load_imported  a published network that `psi4d import` took
instruments.load_instrument  a published network that measures, if it was imported
import_weights.import_weights  a foreign file of weights as ours
weights.save_weights     the weights of a network into a file that says what they are
weights.frozen           a network with the weights of such a file, for use alone

May import core, geometry, store and model.
"""
