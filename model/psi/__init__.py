"""Psi and Psi_3d, and the motion encoder that drives Psi.

network.Psi              the synthesizer
motion_encoder.MotionEncoder  E_mot
reference.ReferencePsi   Psi in the published order of operations, for comparison

May import head, layers, volume and sizes.
"""
